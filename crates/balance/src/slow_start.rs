//! Endpoints that begin to serve get little at first, so that they can warm up.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::choice::WHOLE_SHARE;
use crate::text::{InvalidText, Result, duration, number, pairs, unknown};

/// How an endpoint begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowStart {
    /// After so long it gets all that is due to it.
    pub window: Duration,
    /// With so much of a hundred it begins.
    pub first: u32,
}

impl SlowStart {
    /// With how much an endpoint begins unless something else is said.
    const FIRST: u32 = 10;

    /// Reads such as `window=30s` or `window=1m,first=5`.
    ///
    /// # Errors
    /// A name is unknown or twice there, a value makes no sense, or there is no window.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut window, mut first) = (None, Self::FIRST);
        for (name, value) in pairs(text)? {
            match name {
                "window" => window = Some(duration(name, value)?),
                "first" => first = number(name, value.strip_suffix('%').unwrap_or(value), 1, 100)?,
                other => return Err(unknown(other, "window and first")),
            }
        }
        let window = window.ok_or_else(|| InvalidText("window is missing".to_owned()))?;
        Ok(Self { window, first })
    }

    /// How much of what is due to it an endpoint gets that has served for so long, in thousandths.
    pub fn share(&self, age: Duration) -> u32 {
        let first = u128::from(self.first) * u128::from(WHOLE_SHARE) / 100;
        let grown = (u128::from(WHOLE_SHARE) - first) * age.min(self.window).as_nanos();
        let share = first + grown / self.window.as_nanos().max(1);
        u32::try_from(share).unwrap_or(WHOLE_SHARE).clamp(1, WHOLE_SHARE)
    }
}

impl fmt::Display for SlowStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { window, first } = self;
        write!(f, "window={window:?},first={first}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::tests::refused;

    #[test]
    fn it_is_read() {
        let start = |seconds, first| SlowStart { window: Duration::from_secs(seconds), first };
        assert_eq!(SlowStart::parse("window=30s"), Ok(start(30, 10)));
        assert_eq!(SlowStart::parse("first=5%,window=1m"), Ok(start(60, 5)));
        refused(SlowStart::parse("first=5"), "window is missing");
        refused(SlowStart::parse("30s"), r#""30s" is not of the form name=value"#);
        refused(SlowStart::parse("window=1m,first=0"), r#"first is "0", not a number of 1 to 100"#);
        refused(SlowStart::parse("time=1m"), r#""time" is unknown; there are window and first"#);
    }

    #[test]
    fn a_share_grows_to_the_whole() {
        let start = SlowStart::parse("window=100s,first=20").unwrap();
        let shares = [0, 25, 50, 100, 1000].map(|age| start.share(Duration::from_secs(age)));
        assert_eq!(shares, [200, 400, 600, 1000, 1000]);
    }

    proptest! {
        #[test]
        fn it_never_shrinks(window in 1..86_400_000_u64, first in 1..=100_u32, a in any::<u32>(), b in any::<u32>()) {
            let start = SlowStart { window: Duration::from_millis(window), first };
            let share = |millis: u32| start.share(Duration::from_millis(millis.into()));
            prop_assert!(share(a.min(b)) <= share(a.max(b)));
            prop_assert!((1..=WHOLE_SHARE).contains(&share(a)));
        }
    }
}
