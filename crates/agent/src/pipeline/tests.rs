//! Since when something waits. What is planned is the business of the tests against a kernel in memory.

use std::time::Duration;

use backend_nftables::{Backend, Config, NftablesTarget, NodePortAddresses};
use mode::{Applied, Reading};
use model::{
    AddressKind, Destination, EndpointNode, FrontendAddress, Masquerade, ObjectName, Pool, Protocol,
    ServicePortName, V4, Verdict,
};
use netlink::NetlinkError;

use super::next::ANEW_AFTER;
use super::*;
use crate::worker::{Answer, Job};

/// A pipeline and its clock.
struct Bench {
    pipeline: Pipeline<V4, Backend<V4>>,
    begin: Instant,
}

fn config(node_port: u8) -> Config {
    let address = std::net::IpAddr::from([192, 168, 0, node_port]);
    Config { node_ports: NodePortAddresses::Within(vec![address.into()]), ..Config::default() }
}

fn frontend(last: u8) -> Frontend<V4> {
    let endpoint = Destination { address: [10, 244, 0, last].into(), port: 80, node: EndpointNode::Other };
    Frontend {
        masquerade: Masquerade::Never,
        ..Frontend::new(
            FrontendKey {
                address: FrontendAddress::Ip([10, 96, 0, 1].into()),
                protocol: Protocol::Tcp,
                port: 80,
            },
            AddressKind::ClusterIp,
            ServicePortName { service: name(), port: "".into(), protocol: Protocol::Tcp },
            Pool::new([endpoint].into(), Verdict::Reject),
        )
    }
}

fn name() -> ServiceName {
    ObjectName::new("ns", "svc")
}

fn applied(result: Result<(), NetlinkError>) -> Answer<NftablesTarget> {
    Answer::Applied(Applied::whole(result, None))
}

fn refused() -> NetlinkError {
    NetlinkError::refused("batch", 16, None)
}

impl Bench {
    fn new() -> Self {
        let begin = Instant::now();
        Self {
            pipeline: Pipeline::new(Backend::new(Config::default()), config(1), Duration::ZERO, begin),
            begin,
        }
    }

    /// One that has its rules in the kernel at second 1.
    fn synced() -> Self {
        let mut bench = Self::new();
        assert!(bench.next(0).is_some_and(|job| matches!(job, Job::Read)));
        assert!(bench.report(1, Answer::Read(Reading::Whole(None))).is_some());
        bench.applied(1);
        bench
    }

    fn at(&self, second: u64) -> Instant {
        self.begin + Duration::from_secs(second)
    }

    fn next(&mut self, second: u64) -> Option<Job<NftablesTarget>> {
        let (_, job) = self.pipeline.next(self.at(second), 0.0);
        self.planned(second, job)
    }

    fn report(&mut self, second: u64, answer: Answer<NftablesTarget>) -> Option<Job<NftablesTarget>> {
        let job = self.hand_in(second, answer);
        self.planned(second, job)
    }

    /// What follows once a plan of everything has been made, if that is what comes next.
    fn planned(&mut self, second: u64, job: Option<Job<NftablesTarget>>) -> Option<Job<NftablesTarget>> {
        match job {
            Some(Job::Work(task)) => {
                task.run();
                self.hand_in(second, Answer::Worked)
            }
            job => job,
        }
    }

    fn hand_in(&mut self, second: u64, answer: Answer<NftablesTarget>) -> Option<Job<NftablesTarget>> {
        let (_, job) = self.pipeline.report(answer, Duration::ZERO, self.at(second), 0.0);
        job
    }

    fn applied(&mut self, second: u64) {
        assert!(self.report(second, applied(Ok(()))).is_none());
    }

    fn change(&mut self, second: u64, endpoint: u8) {
        let now = self.at(second);
        self.pipeline.set_service(&name(), vec![frontend(endpoint)], None, now);
    }

    #[track_caller]
    fn waits_since(&self, second: Option<u64>) {
        assert_eq!(self.pipeline.pending_since(), second.map(|second| self.at(second)));
    }
}

#[test]
fn a_change_waits_until_its_own_commit() {
    let mut bench = Bench::synced();
    bench.waits_since(None);
    bench.change(10, 1);
    assert!(bench.next(11).is_some());
    bench.waits_since(Some(10));
    bench.change(12, 2);
    bench.waits_since(Some(10));
    bench.applied(13);
    bench.waits_since(Some(12));
    assert!(bench.next(14).is_some());
    bench.applied(15);
    bench.waits_since(None);
}

#[test]
fn what_failed_waits_since_it_was_asked_for() {
    let mut bench = Bench::synced();
    bench.change(10, 1);
    assert!(bench.next(11).is_some());
    bench.change(12, 2);
    bench.report(13, applied(Err(refused())));
    bench.waits_since(Some(10));
    // One reading takes up both.
    assert!(bench.next(20).is_some_and(|job| matches!(job, Job::Read)));
    assert!(bench.report(21, Answer::Read(Reading::Whole(None))).is_some());
    bench.waits_since(Some(10));
    bench.applied(22);
    bench.waits_since(None);
}

/// An audit that comes to nothing leaves a healthy pipeline at work: nothing waits for it, and changes go on.
#[test]
fn a_failed_audit_holds_nothing_up() {
    let hour = 3600;
    for unread in [|| Reading::Unstable, || Reading::Failed(refused())] {
        let mut bench = Bench::synced();
        let mut now = hour;
        for change in 1..10 {
            assert!(bench.next(now).is_some_and(|job| matches!(job, Job::Read)), "an audit, again and again");
            bench.report(now, Answer::Read(unread()));
            bench.waits_since(None);
            bench.change(now, change);
            assert!(bench.next(now).is_some_and(|job| matches!(job, Job::Apply(_))), "a change");
            bench.applied(now);
            bench.waits_since(None);
            now += 10;
        }
        assert!(bench.next(now).is_some_and(|job| matches!(job, Job::Read)));
        bench.report(now, Answer::Read(Reading::Whole(None)));
        assert!(bench.pipeline.is_known(), "what an audit finds is made right, not built anew");
    }
}

/// Likewise a reading that a foreign change or other settings ask for, but that waits until it succeeds.
#[test]
fn changes_go_on_while_a_repair_can_not_read() {
    let mut bench = Bench::synced();
    let now = bench.at(10);
    bench.pipeline.note_foreign_change(now);
    bench.pipeline.set_settings(&config(2), now);
    for second in (20..200).step_by(20) {
        assert!(bench.next(second).is_some_and(|job| matches!(job, Job::Read)));
        bench.report(second, Answer::Read(Reading::Unstable));
        bench.waits_since(Some(10));
        bench.change(second, u8::try_from(second).unwrap());
        assert!(bench.next(second).is_some_and(|job| matches!(job, Job::Apply(_))));
        bench.applied(second);
        bench.waits_since(Some(10));
    }
    assert!(bench.next(300).is_some_and(|job| matches!(job, Job::Read)));
    assert!(bench.report(300, Answer::Read(Reading::Whole(None))).is_some());
    bench.applied(300);
    bench.waits_since(None);
    assert!(bench.pipeline.is_settled());
}

/// A start that finds no quiet moment to read writes everything anew, soon.
#[test]
fn a_start_that_can_not_read_builds_anew() {
    let mut bench = Bench::new();
    bench.change(0, 1);
    for attempt in 0..u64::from(ANEW_AFTER) {
        assert!(bench.next(attempt).is_some_and(|job| matches!(job, Job::Read)));
        assert!(bench.report(attempt, Answer::Read(Reading::Unstable)).is_none());
    }
    let at = u64::from(ANEW_AFTER);
    let Some(Job::Apply(steps)) = bench.next(at) else { panic!("everything anew") };
    assert!(steps[0].to_string().contains("delete table ip kube-proxy"));
    bench.applied(at);
    bench.waits_since(None);
}

/// The last resort after failed applies needs no reading.
#[test]
fn what_is_refused_again_and_again_is_built_anew() {
    let mut bench = Bench::synced();
    bench.change(10, 1);
    assert!(bench.next(10).is_some());
    bench.report(10, applied(Err(refused())));
    for attempt in [20, 30] {
        assert!(bench.next(attempt).is_some_and(|job| matches!(job, Job::Read)));
        assert!(bench.report(attempt, Answer::Read(Reading::Whole(None))).is_some());
        bench.report(attempt, applied(Err(refused())));
        bench.waits_since(Some(10));
    }
    assert!(bench.next(40).is_some_and(|job| matches!(job, Job::Apply(_))));
    bench.applied(40);
    bench.waits_since(None);
}

/// `minSyncPeriod`: what changes within one goes together.
#[test]
fn at_most_one_sync_begins_in_a_period() {
    let begin = Instant::now();
    let period = Duration::from_secs(10);
    let pipeline = Pipeline::new(Backend::new(Config::default()), config(1), period, begin);
    let mut bench = Bench { pipeline, begin };
    assert!(bench.next(0).is_some());
    assert!(bench.report(0, Answer::Read(Reading::Whole(None))).is_some());
    bench.applied(1);
    for second in 1..10 {
        bench.change(second, u8::try_from(second).unwrap());
        assert!(bench.next(second).is_none(), "second {second}");
        assert_eq!(bench.pipeline.deadline(), Some(bench.at(10)));
    }
    assert!(bench.next(10).is_some());
    bench.applied(11);
    bench.change(19, 200);
    assert!(bench.next(19).is_none());
    assert!(bench.next(20).is_some());
    bench.applied(20);
    bench.waits_since(None);
}

/// A plan of everything is of the table as it stood then; what changes meanwhile comes next, and waits for that.
#[test]
fn what_changes_while_everything_is_planned_is_planned_next() {
    let mut bench = Bench::new();
    bench.change(1, 1);
    assert!(bench.next(2).is_some_and(|job| matches!(job, Job::Read)));
    let Some(Job::Work(task)) = bench.hand_in(3, Answer::Read(Reading::Whole(None))) else {
        panic!("a plan")
    };
    bench.change(4, 2);
    bench.waits_since(Some(1));
    assert!(bench.next(5).is_none());
    task.run();
    let Some(Job::Apply(steps)) = bench.hand_in(6, Answer::Worked) else { panic!("everything") };
    assert!(steps[0].to_string().contains("10.244.0.1 "), "{}", steps[0]);
    bench.waits_since(Some(1));
    bench.applied(7);
    bench.waits_since(Some(4));
    let Some(Job::Apply(steps)) = bench.next(8) else { panic!("the change") };
    assert!(steps[0].to_string().contains("10.244.0.2 "), "{}", steps[0]);
    bench.applied(9);
    bench.waits_since(None);
}

/// As after a panic: what it had taken up still waits, and is made with the next one.
#[test]
fn a_plan_of_everything_that_comes_to_nothing_is_made_again() {
    let mut bench = Bench::new();
    bench.change(1, 1);
    assert!(bench.next(2).is_some_and(|job| matches!(job, Job::Read)));
    let Some(Job::Work(task)) = bench.hand_in(3, Answer::Read(Reading::Whole(None))) else {
        panic!("a plan")
    };
    drop(task);
    assert!(bench.hand_in(4, Answer::Worked).is_none());
    bench.waits_since(Some(1));
    assert!(bench.next(10).is_some_and(|job| matches!(job, Job::Read)));
    assert!(bench.report(11, Answer::Read(Reading::Whole(None))).is_some());
    bench.applied(12);
    bench.waits_since(None);
}

#[test]
fn what_was_read_ahead_serves_the_start_unless_it_is_old() {
    for (wanted, is_new) in [(3, true), (60, false)] {
        let mut bench = Bench::new();
        let now = bench.at(0);
        assert!(bench.pipeline.read_ahead(now).is_some_and(|job| matches!(job, Job::Read)));
        assert!(bench.pipeline.read_ahead(now).is_none(), "once");
        assert!(bench.hand_in(1, Answer::Read(Reading::Whole(None))).is_none());
        bench.change(2, 1);
        let job = bench.next(wanted);
        assert_eq!(matches!(job, Some(Job::Apply(_))), is_new);
        assert_eq!(matches!(job, Some(Job::Read)), !is_new);
    }
}

#[test]
fn a_reading_ahead_that_is_waited_for_is_like_any_other() {
    let mut bench = Bench::new();
    let now = bench.at(0);
    assert!(bench.pipeline.read_ahead(now).is_some());
    assert!(bench.next(2).is_none());
    assert!(
        bench.report(3, Answer::Read(Reading::Whole(None))).is_some_and(|job| matches!(job, Job::Apply(_)))
    );
    // And one that comes to nothing before that is a failure only then.
    let mut bench = Bench::new();
    assert!(bench.pipeline.read_ahead(now).is_some());
    assert!(bench.hand_in(1, Answer::Read(Reading::Failed(refused()))).is_none());
    bench.waits_since(None);
    assert!(bench.next(2).is_none());
    bench.waits_since(Some(2));
    assert!(bench.next(4).is_some_and(|job| matches!(job, Job::Read)));
}

/// No way to the kernel: nothing was done, so that nothing has become unknown.
#[test]
fn a_change_that_was_not_tried_is_tried_again() {
    let mut bench = Bench::synced();
    bench.change(10, 1);
    assert!(bench.next(10).is_some());
    bench.report(10, Answer::NotOpened(refused()));
    bench.waits_since(Some(10));
    assert!(bench.pipeline.is_known());
    assert!(bench.next(20).is_some_and(|job| matches!(job, Job::Apply(_))));
    bench.applied(20);
    bench.waits_since(None);
}

#[test]
fn a_foreign_change_waits_for_its_repair() {
    let mut bench = Bench::synced();
    let now = bench.at(10);
    bench.pipeline.note_foreign_change(now);
    bench.waits_since(Some(10));
    assert!(bench.next(11).is_some_and(|job| matches!(job, Job::Read)));
    bench.waits_since(Some(10));
    // Another one, while the table is read.
    let now = bench.at(12);
    bench.pipeline.note_foreign_change(now);
    assert!(bench.report(13, Answer::Read(Reading::Whole(None))).is_some());
    bench.waits_since(Some(10));
    bench.applied(14);
    bench.waits_since(Some(12));
}

/// Why it reads.
fn reads_for(bench: &Bench) -> Option<Reason> {
    match bench.pipeline.work {
        Work::Reading { reason, .. } => Some(reason),
        _ => None,
    }
}

#[test]
fn what_comes_and_goes_around_is_no_foreign_change() {
    let mut bench = Bench::synced();
    let now = bench.at(10);
    bench.pipeline.note_surroundings(now);
    assert!(bench.next(11).is_some_and(|job| matches!(job, Job::Read)));
    assert_eq!(reads_for(&bench), Some(Reason::Surroundings));
    // Somebody changes what is ours while that can't be read: then it is one.
    let now = bench.at(12);
    bench.pipeline.note_foreign_change(now);
    bench.report(13, Answer::Read(Reading::Unstable));
    bench.waits_since(Some(10));
    assert!(bench.next(30).is_some_and(|job| matches!(job, Job::Read)));
    assert_eq!(reads_for(&bench), Some(Reason::ForeignChange));
    assert!(bench.report(31, Answer::Read(Reading::Whole(None))).is_some());
    bench.applied(32);
    bench.waits_since(None);
}

#[test]
fn what_is_as_it_was_does_not_wait() {
    let mut bench = Bench::synced();
    let (first, second) = (config(1), config(2));
    let now = bench.at(10);
    bench.pipeline.set_settings(&second, now);
    bench.waits_since(Some(10));
    bench.pipeline.set_settings(&first, now);
    bench.waits_since(None);
    // The same while a transaction is in flight.
    bench.change(20, 1);
    assert!(bench.next(20).is_some());
    let now = bench.at(21);
    bench.pipeline.set_settings(&second, now);
    bench.pipeline.set_settings(&first, now);
    bench.applied(22);
    bench.waits_since(None);
    // And a Service that changed back is found to need nothing.
    bench.change(30, 2);
    bench.change(31, 1);
    bench.waits_since(Some(30));
    assert!(bench.next(32).is_none());
    bench.waits_since(None);
}

#[test]
fn a_request_waits_for_a_look_at_the_kernel_even_if_there_is_nothing_to_do() {
    let mut bench = Bench::new();
    bench.waits_since(None);
    let now = bench.at(5);
    bench.pipeline.request(now);
    assert!(bench.next(6).is_some());
    bench.waits_since(Some(5));
    assert!(bench.report(7, Answer::Read(Reading::Whole(None))).is_some());
    bench.waits_since(Some(5));
    bench.applied(8);
    bench.waits_since(None);
}
