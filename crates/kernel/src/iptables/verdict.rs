//! What a failed program says.

use iptables::IptablesError;

/// `RESOURCE_PROBLEM` of `xtables.h`: legacy: the lock. nft: anything that the kernel refuses.
const RESOURCE_PROBLEM: i32 = 4;

/// The error for a program that ended with this code, or by a signal, and these words.
pub(super) fn judge(program: &str, code: Option<i32>, stderr: &str, input: &str) -> IptablesError {
    let says = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    let (program, message) = (program.to_owned(), one_line(stderr, code));
    if says(&["Permission denied", "Operation not permitted", "insmod", "unable to initialize table"]) {
        return IptablesError::Unsupported { program, message };
    }
    let is_short =
        says(&["xtables lock", "temporarily unavailable", "out of memory", "Cannot allocate memory"]);
    if is_short || code == Some(RESOURCE_PROBLEM) && stderr.trim().is_empty() || code.is_none() {
        return IptablesError::Busy { program, message };
    }
    let text = line_number(stderr).and_then(|number| input.lines().nth(number.checked_sub(1)?));
    IptablesError::Refused { program, text: text.map(shorten), message }
}

/// The program's words without its advice to read the manual.
fn one_line(stderr: &str, code: Option<i32>) -> String {
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    let text = lines.collect::<Vec<_>>().join("; ");
    match (text.is_empty(), code) {
        (false, _) => shorten(&text),
        (true, Some(code)) => format!("exit code {code}"),
        (true, None) => "ended by a signal".to_owned(),
    }
}

/// `line 12 failed`, `Error occurred at line: 12` or `line 12: RULE_APPEND failed`.
fn line_number(stderr: &str) -> Option<usize> {
    let behind = stderr.split("line").skip(1).map(|rest| rest.trim_start_matches([':', ' ']));
    let numbers = behind.filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    numbers.last()
}

fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUT: &str = "*nat\n:KUBE-X - [0:0]\n-D KUBE-X -j RETURN\nCOMMIT\n";

    #[track_caller]
    fn check(code: i32, stderr: &str, expected: &str) {
        let error = judge("iptables-restore", Some(code), stderr, INPUT);
        assert_eq!(error.to_string(), expected);
    }

    /// As both flavours of 1.8.9 say it.
    #[test]
    fn refused_lines_are_named() {
        let line = "iptables-restore refused \"-D KUBE-X -j RETURN\": ";
        let expected = |message: &str| format!("{line}{message}");
        check(1, "iptables-restore: line 3 failed\n", &expected("iptables-restore: line 3 failed"));
        let nft = "iptables-nft-restore v1.8.9 (nf_tables): \nline 3: CHAIN_DEL failed (Device or resource busy): chain KUBE-X\n";
        let message = "iptables-nft-restore v1.8.9 (nf_tables):; line 3: CHAIN_DEL failed (Device or resource busy): chain KUBE-X";
        check(4, nft, &expected(message));
        let parse = "Bad argument `what'\nError occurred at line: 3\nTry `iptables-restore -h' or 'iptables-restore --help' for more information.\n";
        check(2, parse, &expected("Bad argument `what'; Error occurred at line: 3"));
        check(1, "", "iptables-restore refused: exit code 1");
    }

    #[test]
    fn a_held_lock_and_a_missing_right_are_told_apart() {
        let is = |code, stderr: &str| judge("iptables-restore", code, stderr, INPUT);
        let lock = "Can't lock /run/xtables.lock: Resource temporarily unavailable\nAnother app is currently holding the xtables lock. Stopped waiting after 1s.\n";
        assert!(matches!(is(Some(4), lock), IptablesError::Busy { .. }));
        assert!(matches!(is(None, ""), IptablesError::Busy { .. }));
        for unsupported in [
            "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n",
            "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'\nError occurred at line: 1\n",
            "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist (do you need to insmod?)\n",
        ] {
            let error = is(Some(4), unsupported);
            assert!(matches!(error, IptablesError::Unsupported { .. }) && !error.is_retryable(), "{error}");
        }
    }
}
