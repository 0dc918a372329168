//! The rings and the hand-over from one collector to the next, in all orders of their threads' steps and all values
//! that the memory model lets them read: `RUSTFLAGS='--cfg loom' cargo test -p tirreno-pipeline --lib shm::model`.
//!
//! The code of the rings is the real one. Segments are small, the clock stands, and the election is loom's mutex
//! instead of the kernel's.

use std::ops::Deref;
use std::sync::{Mutex, OnceLock};

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use crate::event::Param;
use crate::record::{Capture, Record};
use crate::shm::ring::{Batch, Collector, Producer, PushError};
use crate::shm::segment::{Segment, Stage};
use crate::shm::zone::{Zone, anonymous};

/// How often loom interrupts threads that could go on, in one run. With two, it finds a store or load of the ring that
/// is `Relaxed` by mistake; each further one takes several times as long.
const PREEMPTIONS: usize = 2;
/// The target that delivers, among those of each record.
const SLOT: usize = 0;
/// After every record.
const END: u64 = u64::MAX;

/// A zone with segments of one run. Its threads have ended when it is dropped.
struct Model {
    zone: Zone,
    segments: *mut [Segment],
}

impl Model {
    fn new(segments: usize) -> Self {
        // Its counters are none of loom's.
        static HEAD: OnceLock<Zone> = OnceLock::new();
        let head = *HEAD.get_or_init(|| anonymous(1 << 20).unwrap());
        let segments = (0..segments).map(|_| Segment::new()).collect::<Box<[_]>>();
        let segments = Box::into_raw(segments);
        // SAFETY: it was just allocated, and outlives the threads.
        Self { zone: head.with_segments(unsafe { &*segments }), segments }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: nobody uses the segments any more.
        drop(unsafe { Box::from_raw(self.segments) });
    }
}

impl Deref for Model {
    type Target = Zone;

    fn deref(&self) -> &Zone {
        &self.zone
    }
}

fn check(segments: usize, run: impl Fn(&Model) + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(move || run(&Model::new(segments)));
}

fn worker(zone: Zone) -> Producer {
    Producer::new(zone, std::process::id())
}

fn push(worker: &mut Producer, number: usize) -> Result<(), PushError> {
    let url = format!("/{number}");
    let mut capture = Capture::new(0);
    capture.targets = 1 << SLOT;
    capture.set(Param::Url, url.as_bytes()).unwrap();
    assert_eq!(Segment::ROOM / capture.record_len(), 2, "the third record needs another segment");
    worker.push(&capture)
}

fn number(record: &[u8]) -> usize {
    let url = Record::parse(record).unwrap().get(Param::Url).unwrap();
    str::from_utf8(&url[1..]).unwrap().parse().unwrap()
}

fn numbers(batch: &Batch) -> impl Iterator<Item = usize> {
    assert_eq!(batch.damaged, 0);
    batch.records.iter().map(|taken| number(&taken.bytes))
}

/// Reads what is there, and frees it.
fn read(collector: &mut Collector) -> Vec<usize> {
    let batch = collector.take(END, usize::MAX);
    collector.free(|_| false);
    numbers(&batch).collect()
}

fn sorted(mut numbers: Vec<usize>) -> Vec<usize> {
    numbers.sort();
    numbers
}

#[test]
fn each_record_is_read_once_and_whole() {
    check(2, |model| {
        let zone = model.zone;
        let writes = thread::spawn(move || {
            let mut worker = worker(zone);
            (0..3).for_each(|n| push(&mut worker, n).unwrap());
        });
        let mut collector = Collector::new(zone);
        let mut all = read(&mut collector);
        all.extend(read(&mut collector));
        writes.join().unwrap();
        all.extend(read(&mut collector));
        assert_eq!(sorted(all), [0, 1, 2]);
        assert!(!zone.has_records());
    });
}

#[test]
fn a_segment_that_was_freed_is_written_again() {
    check(1, |model| {
        let zone = model.zone;
        let writes = thread::spawn(move || {
            let mut worker = worker(zone);
            (0..2).for_each(|n| push(&mut worker, n).unwrap());
            while push(&mut worker, 2).is_err() {
                thread::yield_now();
            }
        });
        let mut collector = Collector::new(zone);
        let mut all = Vec::new();
        while all.len() < 3 {
            all.extend(read(&mut collector));
            thread::yield_now();
        }
        writes.join().unwrap();
        assert_eq!(all, [0, 1, 2]);
    });
}

#[test]
fn workers_claim_different_segments() {
    check(2, |model| {
        let zone = model.zone;
        let writes = |n| thread::spawn(move || push(&mut worker(zone), n).unwrap());
        let workers = [writes(0), writes(1)];
        let mut collector = Collector::new(zone);
        let mut all = read(&mut collector);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        all.extend(read(&mut collector));
        assert_eq!(sorted(all), [0, 1]);
        assert!(zone.segments().iter().all(|segment| matches!(segment.stage(), Stage::Open(_))));
    });
}

/// Where a collector is killed.
#[derive(Clone, Copy, PartialEq)]
enum Killed {
    Never,
    /// After a record was written into its target, before the cursor says so.
    BeforeCursor,
    /// After the cursor says so, before anything is freed.
    BeforeFree,
}

/// What all collectors of a run share.
struct Shared {
    election: loom::sync::Mutex<()>,
    /// What was written into the target. It is none of the zone's, so loom need not look at it.
    target: Mutex<Vec<usize>>,
}

/// Collects once, as who was elected.
fn collect(zone: Zone, shared: &Shared, killed: Killed) {
    let _term = shared.election.lock().unwrap();
    let mut collector = Collector::new(zone);
    let batch = collector.take(END, usize::MAX);
    for (taken, number) in batch.records.iter().zip(numbers(&batch)) {
        if collector.has_taken(SLOT, taken.place) {
            continue;
        }
        shared.target.lock().unwrap().push(number);
        if killed == Killed::BeforeCursor {
            return;
        }
        zone.took(SLOT, taken.place);
    }
    if killed == Killed::BeforeFree {
        return;
    }
    collector.free(|_| false);
}

fn hand_over(killed: Killed, most_repeated: usize) {
    check(2, move |model| {
        let zone = model.zone;
        let shared = Arc::new(Shared { election: Default::default(), target: Mutex::default() });
        let collects = |killed| {
            let shared = shared.clone();
            thread::spawn(move || collect(zone, &shared, killed))
        };
        let mut worker = worker(zone);
        (0..2).for_each(|n| push(&mut worker, n).unwrap());
        let collectors = [collects(killed), collects(Killed::Never)];
        push(&mut worker, 2).unwrap();
        collectors.into_iter().for_each(|collector| collector.join().unwrap());
        collect(zone, &shared, Killed::Never);
        let mut written = sorted(shared.target.lock().unwrap().clone());
        let all = written.len();
        written.dedup();
        assert_eq!(written, [0, 1, 2]);
        assert!(all - written.len() <= most_repeated);
        assert!(!zone.has_records());
    });
}

#[test]
fn who_follows_a_collector_goes_on_where_it_left() {
    hand_over(Killed::Never, 0);
}

#[test]
fn who_follows_a_killed_collector_repeats_only_what_no_cursor_tells() {
    hand_over(Killed::BeforeCursor, 1);
}

#[test]
fn who_follows_a_killed_collector_finds_its_cursor() {
    hand_over(Killed::BeforeFree, 0);
}
