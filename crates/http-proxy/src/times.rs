//! For how long what may take.

use std::time::Duration;

use balance::Timeouts;
use tokio::time::sleep;

/// For how long what may take, where nothing else is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A connection to an endpoint is tried, before another endpoint is.
    pub connect: Duration,
    /// A connection lasts while nothing goes on there; `None`: as long as it likes.
    pub idle: Option<Duration>,
    /// A request waits for its answer to begin; `None`: as long as that takes.
    pub request: Option<Duration>,
    /// Connections and requests go on at an endpoint that is gone.
    pub drain: Duration,
}

impl Times {
    /// These, but for what is asked for.
    #[must_use]
    pub fn but(self, asked: Timeouts) -> Self {
        Self {
            connect: asked.connect.unwrap_or(self.connect),
            idle: asked.idle.map_or(self.idle, |_| asked.idle_limit()),
            request: asked.request.map_or(self.request, |_| asked.request_limit()),
            drain: asked.drain.unwrap_or(self.drain),
        }
    }
}

/// How often it is looked whether something happened, within the time in which it should.
const LOOKS: u32 = 4;

/// Ends when nothing has happened for so long, or a quarter longer. `is_idle` says whether nothing has since it was last asked.
pub async fn idle_for(limit: Duration, mut is_idle: impl FnMut() -> bool) {
    let mut idle_looks = 0;
    while idle_looks < LOOKS {
        sleep(limit / LOOKS).await;
        idle_looks = if is_idle() { idle_looks + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn what_is_asked_for_comes_first() {
        let seconds = Duration::from_secs;
        let times = Times { connect: seconds(4), idle: None, request: Some(seconds(9)), drain: seconds(60) };
        assert_eq!(times.but(Timeouts::default()), times);
        let asked = Timeouts::parse("connect=1s,idle=2s,request=0,drain=3s").unwrap();
        let expected =
            Times { connect: seconds(1), idle: Some(seconds(2)), request: None, drain: seconds(3) };
        assert_eq!(times.but(asked), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_now_and_then_is_not_idle() {
        let limit = Duration::from_secs(8);
        let mut left = 10;
        let began = Instant::now();
        // Something happens before each of ten looks.
        idle_for(limit, || {
            left -= 1;
            left < 0
        })
        .await;
        assert_eq!(began.elapsed(), limit / LOOKS * 14);
    }
}
