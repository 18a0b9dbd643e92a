//! What is done after a try that failed.

use std::time::Duration;

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There was no connection: nothing was sent.
    NotConnected,
    /// There may be no other connection: nothing was sent.
    NoRoom,
    /// A connection that was kept had ended: nothing was sent.
    NotSent,
    /// The endpoint says that it did nothing about it.
    Refused,
    /// The endpoint says that it can't serve this now, in gRPC's words.
    Unavailable,
    /// The endpoint may have done what was asked for, or a part of it.
    Broken,
    /// The time for an answer is over, whatever the endpoint has done.
    Late,
}

/// What matters about a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// To do it twice is as good as once.
    pub(crate) is_idempotent: bool,
    /// All that was sent of it can be sent again.
    pub(crate) is_replayable: bool,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    /// Endpoints that got the request, or were to get it.
    pub(crate) n_tries: u32,
    /// Those of them that may have begun to work at it.
    pub(crate) n_sent: u32,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another connection, maybe to the same endpoint.
    Again,
    /// Another endpoint.
    Elsewhere,
    /// Another endpoint, or another connection if there is no other, if the budget has room for a retry.
    Retry,
    /// Nothing: the failure is the answer.
    GiveUp,
}

/// Endpoints that are tried for one request, as for a connection that is carried as bytes.
const MAX_TRIES: u32 = 5;
/// Of which more than one may have begun to work at it only once.
const MAX_SENT: u32 = 2;

/// What comes after this failure, the last of those that are counted.
pub(crate) fn next(failure: Failure, request: Request, tries: Tries) -> Next {
    if tries.n_tries >= MAX_TRIES {
        return Next::GiveUp;
    }
    let may_be_sent_again = request.is_replayable && tries.n_sent < MAX_SENT;
    match failure {
        Failure::NotConnected | Failure::NoRoom => Next::Elsewhere,
        Failure::NotSent => Next::Again,
        Failure::Refused | Failure::Unavailable if may_be_sent_again => Next::Retry,
        Failure::Broken if may_be_sent_again && request.is_idempotent => Next::Retry,
        Failure::Refused | Failure::Unavailable | Failure::Broken | Failure::Late => Next::GiveUp,
    }
}

/// How many requests may be sent twice: one in five of those of late, and a few in any case, so that a failure of all endpoints
/// does not double what they have to do.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Requests and retries by second, in a ring.
    seconds: [Second; SECONDS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    /// Which second this is about.
    number: u64,
    requests: u32,
    retries: u32,
}

/// For how long a request is one of late.
const SECONDS: usize = 10;
/// Requests for one retry.
const REQUESTS_A_RETRY: u64 = 5;
/// Retries within [`SECONDS`] that need no requests.
const FREE_RETRIES: u64 = 10;

impl Budget {
    /// There is another request, so long after some beginning.
    pub(crate) fn request(&mut self, now: Duration) {
        let second = self.second(now);
        second.requests = second.requests.saturating_add(1);
    }

    /// Takes a retry, if there is one.
    pub(crate) fn take_retry(&mut self, now: Duration) -> bool {
        let oldest = now.as_secs().saturating_sub(SECONDS as u64 - 1);
        let of_late =
            self.seconds.iter().filter(|second| second.number >= oldest && second.number <= now.as_secs());
        let (requests, retries) = of_late.fold((0, 0), |(requests, retries), second| {
            (requests + u64::from(second.requests), retries + u64::from(second.retries))
        });
        let has_one = retries < FREE_RETRIES + requests / REQUESTS_A_RETRY;
        if has_one {
            self.second(now).retries += 1;
        }
        has_one
    }

    fn second(&mut self, now: Duration) -> &mut Second {
        let number = now.as_secs();
        let place = usize::try_from(number % SECONDS as u64).unwrap_or(0);
        let second = &mut self.seconds[place];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: Request = Request { is_idempotent: true, is_replayable: true };
    const POST: Request = Request { is_idempotent: false, is_replayable: true };
    const BIG_PUT: Request = Request { is_idempotent: true, is_replayable: false };

    #[track_caller]
    fn check(failure: Failure, request: Request, (n_tries, n_sent): (u32, u32), expected: Next) {
        assert_eq!(next(failure, request, Tries { n_tries, n_sent }), expected);
    }

    #[test]
    fn what_was_not_sent_is_tried_elsewhere_whatever_it_is() {
        for request in [GET, POST, BIG_PUT] {
            check(Failure::NotConnected, request, (1, 0), Next::Elsewhere);
            check(Failure::NotConnected, request, (4, 1), Next::Elsewhere);
            check(Failure::NotConnected, request, (5, 0), Next::GiveUp);
            check(Failure::NotSent, request, (1, 0), Next::Again);
            check(Failure::NotSent, request, (5, 0), Next::GiveUp);
            check(Failure::Late, request, (1, 0), Next::GiveUp);
        }
    }

    #[test]
    fn what_may_have_been_done_is_done_again_once_and_only_if_that_is_no_harm() {
        check(Failure::Broken, GET, (1, 1), Next::Retry);
        check(Failure::Broken, GET, (2, 2), Next::GiveUp);
        check(Failure::Broken, POST, (1, 1), Next::GiveUp);
        check(Failure::Broken, BIG_PUT, (1, 1), Next::GiveUp);
    }

    #[test]
    fn what_an_endpoint_did_not_do_is_done_by_another_once() {
        for failure in [Failure::Refused, Failure::Unavailable] {
            check(failure, POST, (1, 1), Next::Retry);
            check(failure, POST, (3, 1), Next::Retry);
            check(failure, POST, (2, 2), Next::GiveUp);
            check(failure, BIG_PUT, (1, 1), Next::GiveUp);
        }
    }

    #[test]
    fn a_few_retries_are_free_and_come_back() {
        let mut budget = Budget::default();
        let at = Duration::from_secs;
        let taken = (0..100).filter(|_| budget.take_retry(at(100))).count();
        assert_eq!(taken, 10);
        assert!(!budget.take_retry(at(109)));
        assert!(budget.take_retry(at(110)));
    }

    #[test]
    fn requests_of_long_ago_allow_nothing() {
        let mut budget = Budget::default();
        for _ in 0..1000 {
            budget.request(Duration::from_secs(50));
        }
        assert_eq!((0..1000).filter(|_| budget.take_retry(Duration::from_secs(59))).count(), 210);
        assert_eq!((0..1000).filter(|_| budget.take_retry(Duration::from_secs(70))).count(), 10);
    }

    proptest! {
        #[test]
        fn retries_are_a_fifth_of_the_requests_and_a_few(
            steps in proptest::collection::vec((any::<bool>(), 0..3_u64), 1..400),
        ) {
            let mut budget = Budget::default();
            let (mut now, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (is_request, pause) in steps {
                now += pause;
                if is_request {
                    budget.request(Duration::from_secs(now));
                    requests.push(now);
                } else if budget.take_retry(Duration::from_secs(now)) {
                    retries.push(now);
                }
                let of_late = |times: &[u64]| times.iter().filter(|time| **time + 10 > now).count();
                // A retry stays within what was allowed when it was taken, so requests a window earlier count as well.
                let earlier = requests.iter().filter(|time| **time + 20 > now).count();
                prop_assert!(of_late(&retries) <= 10 + earlier / 5);
            }
        }

        #[test]
        fn no_request_is_sent_more_than_twice(
            failures in proptest::collection::vec(proptest::sample::select(vec![
                Failure::NotConnected, Failure::NotSent, Failure::Refused, Failure::Unavailable, Failure::Broken,
            ]), 20),
            is_idempotent: bool,
        ) {
            let mut tries = Tries::default();
            let request = Request { is_idempotent, is_replayable: true };
            for failure in failures {
                tries.n_tries += 1;
                tries.n_sent += u32::from(!matches!(failure, Failure::NotConnected | Failure::NotSent));
                if next(failure, request, tries) == Next::GiveUp {
                    break;
                }
            }
            prop_assert!(tries.n_sent <= 2 && tries.n_tries <= 5);
        }
    }
}
