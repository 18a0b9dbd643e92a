//! Runs a program to its end, which is no later than our own.
#![expect(unsafe_code, reason = "only a hook between fork and exec can tie a child's life to its parent's")]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use iptables::IptablesError;
use tokio::time::Instant;

use super::verdict;

/// A program and its first arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
}

impl Program {
    pub(super) fn new(name: &str, arguments: &[&str]) -> Self {
        Self { name: name.to_owned(), arguments: arguments.iter().map(|&a| a.to_owned()).collect() }
    }
}

/// Runs a program with this input and gives what it printed; fails unless it ends with code 0 within the limit.
pub(super) fn run(
    program: &Program,
    arguments: &[&str],
    input: Option<&Arc<str>>,
    limit: Duration,
) -> Result<String, IptablesError> {
    let failed = |source| IptablesError::Run { program: program.name.clone(), source };
    let mut command = Command::new(&program.name);
    command
        .args(&program.arguments)
        .args(arguments)
        // The texts that are looked for in messages are not translated, and neither are numbers.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    end_with_parent(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let ended = wait(&mut child, input.cloned(), limit);
    if !matches!(ended, Ok(Some(_))) {
        // It may have ended by itself meanwhile. What it was given is not wholly known to be done or not: to be read.
        drop(child.kill());
        drop(child.wait());
    }
    let Ended { status, stdout, stderr } = ended
        .map_err(failed)?
        .ok_or_else(|| IptablesError::TimedOut { program: program.name.clone(), limit })?;
    if status.success() {
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    } else {
        Err(verdict::judge(
            &program.name,
            status.code(),
            &String::from_utf8_lossy(&stderr),
            input.map_or("", |input| input),
        ))
    }
}

/// Has the kernel kill the program when the thread that starts it ends, which a thread in [`run`] does not do before the whole
/// process does. Otherwise a program could carry out an order of ours after we were killed, or had ended for another
/// configuration, and put rules back that whoever came after us has already removed.
fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let tie = move || {
        // SAFETY: these are system calls without pointers, safe to make between fork and exec.
        let (tied, still_there) = unsafe {
            let tied = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0;
            // The parent may have ended before the signal was asked for.
            (tied, u32::try_from(libc::getppid()).is_ok_and(|id| id == parent))
        };
        match (tied, still_there) {
            (false, _) => Err(std::io::Error::last_os_error()),
            (true, false) => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
            (true, true) => Ok(()),
        }
    };
    // SAFETY: the hook makes system calls only: it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(tie);
    }
}

struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Feeds the program and waits for its end; `None` when the time is over.
///
/// The threads end with the program, whose ends of the pipes close then.
fn wait(child: &mut Child, input: Option<Arc<str>>, limit: Duration) -> std::io::Result<Option<Ended>> {
    let deadline = Instant::now() + limit;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        // A program that fails early closes its input; its own message says more than our broken pipe.
        spawn("iptables-in", move || drop(pipe.write_all(input.as_bytes())))?;
    }
    let (stdout, stderr) = (reader(child.stdout.take())?, reader(child.stderr.take())?);
    let receive = |end: mpsc::Receiver<std::io::Result<Vec<u8>>>| {
        end.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok().transpose()
    };
    let (Some(stdout), Some(stderr)) = (receive(stdout)?, receive(stderr)?) else { return Ok(None) };
    Ok(Some(Ended { status: child.wait()?, stdout, stderr }))
}

fn reader(
    pipe: Option<impl Read + Send + 'static>,
) -> std::io::Result<mpsc::Receiver<std::io::Result<Vec<u8>>>> {
    let (sender, receiver) = mpsc::channel();
    spawn("iptables-out", move || {
        let mut bytes = Vec::new();
        let read = pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes));
        // Nobody waits any more when the time was over.
        drop(sender.send(read.map(|_| bytes)));
    })?;
    Ok(receiver)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, limit: Duration) -> Result<String, IptablesError> {
        run(&Program::new("sh", &["-c", script]), &[], Some(&input.into()), limit)
    }

    #[test]
    fn input_goes_in_and_output_comes_out_however_much_it_is() {
        let input = "a line of a rule\n".repeat(100_000);
        assert_eq!(shell("cat; echo much on the side >&2", &input, LONG).unwrap(), input);
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let error = shell("exec sleep 600", "", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, IptablesError::TimedOut { .. }), "{error}");
        assert!(error.is_retryable());
    }

    #[test]
    fn a_program_ends_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt as _;
        let start = || {
            let mut command = Command::new("sleep");
            end_with_parent(command.arg("600"));
            command.spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn failures_are_told_apart() {
        let error = shell("echo Another app is currently holding the xtables lock >&2; exit 4", "", LONG);
        assert!(matches!(error, Err(IptablesError::Busy { .. })), "{error:?}");
        let error = shell("exit 1", &"x".repeat(1 << 20), LONG).unwrap_err();
        assert!(matches!(error, IptablesError::Refused { .. }), "{error}");
        let missing = Program::new("no-such-program-of-ours", &[]);
        assert!(matches!(run(&missing, &[], None, LONG), Err(IptablesError::Run { .. })));
    }
}
