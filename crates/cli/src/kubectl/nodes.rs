//! Several nodes asked at once. One that does not answer, or not in time, costs its own answer alone.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// So many are asked at a time: each is a process, and a connection to the API server.
const AT_ONCE: usize = 16;

/// What came of asking a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) node: String,
    /// What the command there wrote to its standard output, or why nobody knows.
    pub(super) said: Result<Said, String>,
}

/// What a command said, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) code: u8,
}

/// Asks nodes, each by a command; the answers are in the order of the questions.
pub(super) async fn ask(
    questions: impl IntoIterator<Item = (String, std::process::Command)>,
    patience: Duration,
) -> Vec<Answer> {
    let (places, mut asked) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for (idx, (node, command)) in questions.into_iter().enumerate() {
        let places = places.clone();
        asked.spawn(async move {
            // Nobody closes it.
            let _place = places.acquire_owned().await;
            let said = run(command.into(), patience).await;
            (idx, Answer { node, said })
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(idx, _)| *idx);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Runs a command for as long as there is patience; then it is killed.
async fn run(mut command: tokio::process::Command, patience: Duration) -> Result<Said, String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(patience, command.output()).await {
        Ok(output) => output
            .map_err(|error| format!("run {}: {error}", command.as_std().get_program().to_string_lossy()))?,
        Err(_elapsed) => return Err(format!("nothing came within {} s", patience.as_secs())),
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let said = Said { stdout: text(output.stdout), stderr: text(output.stderr), code: code(output.status) };
    if said.stdout.is_empty() && said.code != 0 {
        let why = said.stderr.trim();
        let why = if why.is_empty() { output.status.to_string() } else { why.to_owned() };
        let bare = why.strip_prefix("Error: ").or_else(|| why.strip_prefix("error: "));
        return Err(bare.map_or_else(|| why.clone(), str::to_owned));
    }
    Ok(said)
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(node: &str, script: &str) -> (String, Command) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        (node.to_owned(), command)
    }

    #[tokio::test]
    async fn a_node_that_fails_costs_its_own_answer() {
        let questions = vec![
            shell("a", "echo fine; echo but >&2; exit 1"),
            shell("b", "echo 'Error: no pod' >&2; exit 3"),
            shell("c", "kill -9 $$"),
            ("d".to_owned(), Command::new("/no/such/program")),
        ];
        let answers = ask(questions, Duration::from_mins(10)).await;
        let said: Vec<_> = answers.iter().map(|answer| (answer.node.as_str(), answer.said.clone())).collect();
        let fine = Said { stdout: "fine\n".into(), stderr: "but\n".into(), code: 1 };
        assert_eq!(said[0], ("a", Ok(fine)));
        assert_eq!(said[1], ("b", Err("no pod".to_owned())));
        assert_eq!(said[2], ("c", Err("signal: 9 (SIGKILL)".to_owned())));
        assert!(said[3].1.as_ref().is_err_and(|why| why.starts_with("run /no/such/program: ")), "{said:?}");
    }

    /// One that never answers does not hold up the others, and its process ends.
    #[tokio::test]
    async fn a_node_that_is_silent_is_given_up() {
        let questions = vec![shell("slow", "exec sleep 100000"), shell("quick", "echo here")];
        let answers = ask(questions, Duration::from_secs(1)).await;
        assert_eq!(answers[0].said, Err("nothing came within 1 s".to_owned()));
        assert_eq!(answers[1].said.as_ref().map(|said| said.stdout.as_str()), Ok("here\n"));
    }

    /// However many there are, no more than so many are asked at a time.
    #[tokio::test]
    async fn not_all_are_asked_at_once() {
        let dir = std::env::temp_dir().join(format!("kproxy-nodes-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let script = format!(
            "cd {}; : > $$; ls | wc -l; for i in 1 2 3 4 5 6 7 8 9; do ls > /dev/null; done; rm $$",
            dir.display()
        );
        let questions: Vec<_> = (0..60).map(|n| shell(&format!("n{n}"), &script)).collect();
        let answers = ask(questions, Duration::from_mins(10)).await;
        std::fs::remove_dir_all(&dir).unwrap();
        let at_once =
            answers.iter().map(|answer| answer.said.as_ref().unwrap().stdout.trim().parse::<usize>());
        let most = at_once.map(Result::unwrap).max().unwrap();
        assert!((1..=AT_ONCE).contains(&most), "{most} at once");
        let order: Vec<_> = answers.iter().map(|answer| answer.node.clone()).collect();
        assert_eq!(order, (0..60).map(|n| format!("n{n}")).collect::<Vec<_>>());
    }
}
