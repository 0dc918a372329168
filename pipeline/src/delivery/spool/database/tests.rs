use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::LazyLock;

use tempfile::TempDir;

use super::*;
use crate::delivery::spool::SETTLE_FROM;
use crate::delivery::spool::lock::{Sender, announce, is_shared, set_aside};
use crate::delivery::turns::TURN;
use crate::event::{EventType, Param};
use crate::privacy::Privacy;
use crate::record::Capture;

const DELAY: Duration = Duration::from_secs(3600);
const MANY: [usize; 4] = [100_000; 4];
const INSTANCE: u64 = 7;

struct Bench {
    dir: TempDir,
    config: SpoolConfig,
    next: u64,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let config = SpoolConfig::new(dir.path().into(), String::new());
        Self { dir, config, next: 0 }
    }

    fn file(&self) -> PathBuf {
        Database::file(&self.config, "t", "http://t/sensor/")
    }

    fn open(&self) -> Database {
        let mut database = self.open_only();
        database.start_sending().unwrap();
        database
    }

    fn open_only(&self) -> Database {
        Database::open(&self.config, &self.file(), INSTANCE).unwrap()
    }

    /// The next event, with its number as its URL and its stamp.
    fn event(&mut self, rank: Rank, user: &str) -> Vec<u8> {
        self.next += 1;
        let url = format!("/{}", self.next);
        let mut capture = Capture::new(wall_ms());
        capture.rank = rank;
        capture.trace = format!("{:032x}", self.next).into_bytes().try_into().unwrap();
        capture.set(Param::Url, url.as_bytes()).unwrap();
        capture.set(Param::UserName, user.as_bytes()).unwrap();
        let mut bytes = vec![0; capture.record_len()];
        capture.write(self.next, &mut bytes);
        bytes
    }

    fn append(
        &mut self,
        database: &mut Database,
        rank: Rank,
        user: &str,
        count: usize,
    ) -> Appended {
        let events: Vec<_> = (0..count).map(|_| self.event(rank, user)).collect();
        append(database, &events)
    }
}

fn append(database: &mut Database, events: &[Vec<u8>]) -> Appended {
    let events: Vec<_> = events.iter().map(|event| intake(event)).collect();
    database.append(&events, DELAY, &|| false).unwrap()
}

/// As a target sees it that may know all.
fn intake(bytes: &[u8]) -> Intake<'_> {
    static PRIVACY: LazyLock<Privacy> = LazyLock::new(Privacy::default);
    PRIVACY.view(Record::parse(bytes).unwrap()).into()
}

fn take_all(database: &mut Database) -> Vec<Stored> {
    database.take(MANY, usize::MAX, Stamp::END).unwrap()
}

/// The events' numbers.
fn numbers(events: &[Stored]) -> Vec<u64> {
    let number = |event: &Stored| {
        let form: BTreeMap<String, String> = serde_urlencoded::from_str(&event.body).unwrap();
        form["url"][1..].parse().unwrap()
    };
    events.iter().map(number).collect()
}

fn settle(database: &mut Database, events: &[Stored], outcome: Outcome) {
    database.settle(&events.iter().map(|event| (event.id, outcome)).collect()).unwrap();
}

#[track_caller]
fn adds_up(database: &Database) -> SpoolTotals {
    let t = database.totals();
    let sum = t.delivered + t.rejected + t.dropped + t.merged + t.withdrawn + t.pending;
    assert_eq!(t.collected, sum, "{t:?}");
    let (count, bytes): (i64, Option<i64>) = database
        .db
        .query_row("SELECT count(*), sum(length(body) + 200) FROM pending", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!((unsigned(count), unsigned(bytes.unwrap_or(0))), (t.pending, t.bytes));
    t
}

#[test]
fn what_is_committed_comes_back_in_order() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 5);
    let first = database.take([0, 0, 0, 2], usize::MAX, Stamp::END).unwrap();
    assert_eq!(numbers(&first), [1, 2]);
    settle(&mut database, &first[..1], Outcome::Delivered);
    settle(&mut database, &first[1..], Outcome::Rejected(Fault::Answered(403)));
    drop(database);
    let mut database = bench.open();
    let rest = take_all(&mut database);
    assert_eq!(numbers(&rest), [3, 4, 5]);
    assert!(rest[0].id > first[1].id);
    let t = adds_up(&database);
    assert_eq!((t.collected, t.delivered, t.rejected, t.pending), (5, 1, 1, 3));
    assert_eq!(database.rejected_by_reason().unwrap(), [(Fault::Answered(403), 1)]);
}

#[test]
fn each_is_handed_out_once_and_nothing_is_asked_when_there_is_nothing() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 5);
    assert_eq!(take_all(&mut database).len(), 5);
    assert!(take_all(&mut database).is_empty());
    assert_eq!(database.next_due(), None);
    bench.append(&mut database, Rank::Four, "u", 1);
    assert_eq!(database.next_due(), Some(Stamp::default()));
    assert_eq!(numbers(&take_all(&mut database)), [6]);
    assert_eq!(database.next_due(), None);
    // The next sender gets them again.
    database.start_sending().unwrap();
    assert_eq!(take_all(&mut database).len(), 6);
}

#[test]
fn what_a_ring_had_stored_is_not_stored_again() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    let events = [(); 3].map(|()| bench.event(Rank::Four, "u"));
    let from = |ring, event| Intake { ring: Some(ring), ..intake(event) };
    let append = |database: &mut Database, events: &[Intake<'_>]| {
        database.append(events, DELAY, &|| false).unwrap().stored
    };
    assert_eq!(append(&mut database, &[from(3, &events[0]), from(4, &events[1])]), 2);
    drop(database);
    // Killed between the commit and freeing the ring.
    let mut database = bench.open();
    assert_eq!(append(&mut database, &[from(3, &events[0]), from(4, &events[1])]), 0);
    // Each ring has its own.
    assert_eq!(append(&mut database, &[from(3, &events[2]), from(5, &events[0])]), 2);
    assert_eq!(adds_up(&database).collected, 4);
    // So has each instance of nginx.
    let mut other = Database::open(&bench.config, &bench.file(), INSTANCE + 1).unwrap();
    assert_eq!(append(&mut other, &[from(3, &events[0])]), 1);
}

#[test]
fn one_event_stands_for_many_and_says_how_many() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    let events: Vec<_> = (0..57).map(|_| bench.event(Rank::Three, "u")).collect();
    let until_ns = monotonic_ns() + 3_600_000_000_000;
    let merge = Some(Merge { key: u64::MAX - 5, until_ns });
    let intake = |event, merge| Intake { ring: Some(1), merge, ..intake(event) };
    let some: Vec<_> = events[..30].iter().map(|event| intake(event, merge)).collect();
    database.append(&some, DELAY, &|| false).unwrap();
    // Killed before the ring was freed.
    drop(database);
    let mut database = bench.open();
    let all: Vec<_> = events.iter().map(|event| intake(event, merge)).collect();
    database.append(&all, DELAY, &|| false).unwrap();
    let t = adds_up(&database);
    assert_eq!((t.collected, t.merged, t.pending), (57, 56, 1));
    assert!(take_all(&mut database).is_empty());
    database.db.execute("UPDATE pending SET due = 1", []).unwrap();
    database.sending.as_mut().unwrap().unordered = Some(Stamp::default());
    let events = take_all(&mut database);
    assert_eq!(events.len(), 1);
    assert!(events[0].body.contains("url=%2F1%3Frepeated%3D57&"), "{}", events[0].body);
    // The next one is another event: this is on its way.
    let late = bench.event(Rank::Three, "u");
    database.append(&[intake(&late, merge)], DELAY, &|| false).unwrap();
    settle(&mut database, &events, Outcome::Delivered);
    let t = adds_up(&database);
    assert_eq!((t.collected, t.merged, t.delivered, t.pending), (58, 56, 1, 1));
}

#[test]
fn higher_ranks_go_first_and_users_take_turns() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "many", 100);
    bench.append(&mut database, Rank::Four, "few", 3);
    bench.append(&mut database, Rank::Three, "c", 1);
    bench.append(&mut database, Rank::One, "d", 1);
    let events = numbers(&take_all(&mut database));
    assert_eq!(events[..2], [105, 104]);
    let few = events.iter().position(|n| *n == 103).unwrap();
    assert!(few < 2 + 2 * TURN as usize + 3, "{events:?}");
    let many: Vec<_> = events.iter().filter(|n| **n <= 100).collect();
    assert!(many.is_sorted(), "a user's events keep their order: {events:?}");
    assert_eq!(events.len(), 105);
}

#[test]
fn who_sent_much_before_has_no_fewer_turns_later() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    for _ in 0..3 {
        bench.append(&mut database, Rank::Four, "a", 1000);
        let events = take_all(&mut database);
        settle(&mut database, &events, Outcome::Delivered);
    }
    let first = bench.next;
    for _ in 0..20 {
        bench.append(&mut database, Rank::Four, "a", 1);
        bench.append(&mut database, Rank::Four, "b", 1);
    }
    let events = numbers(&take_all(&mut database));
    let of_a = events[..20].iter().filter(|n| (*n - first) % 2 == 1).count();
    assert!((8..=12).contains(&of_a), "{events:?}");
}

#[test]
fn a_higher_event_takes_its_users_last_ones_along() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "other", 30);
    bench.append(&mut database, Rank::Four, "u", 40);
    bench.append(&mut database, Rank::Four, "other", 30);
    bench.append(&mut database, Rank::Two, "u", 1);
    bench.append(&mut database, Rank::Four, "u", 2);
    let check = |database: &mut Database| {
        let events = numbers(&take_all(database));
        let expected: Vec<_> = (46..=70).chain([101]).collect();
        assert_eq!(events[..26], expected);
        let rest: Vec<_> =
            events[26..].iter().copied().filter(|n| (31..=70).contains(n) || *n > 101).collect();
        assert_eq!(rest, (31..=45).chain([102, 103]).collect::<Vec<_>>());
        assert_eq!(events.len(), 103);
    };
    check(&mut database);
    // The next process knows as much.
    drop(database);
    check(&mut bench.open());
}

#[test]
fn another_instances_events_get_their_place_by_the_time_of_capture() {
    let mut bench = Bench::new();
    let (mut sender, mut other) = (bench.open(), bench.open_only());
    let events: Vec<_> = (0..6).map(|_| bench.event(Rank::Four, "u")).collect();
    let shared = |database: &mut Database, events: &[Vec<u8>]| {
        let events: Vec<_> = events.iter().map(|event| intake(event)).collect();
        database.append(&events, DELAY, &|| true).unwrap();
    };
    shared(&mut other, &events[3..4]);
    shared(&mut sender, &events[2..3]);
    shared(&mut other, &events[0..1]);
    assert_eq!(sender.sync().unwrap(), Some(vec![]));
    let until = sender.stamp(3);
    // What was captured at 3 or later may still have one before it.
    assert_eq!(numbers(&sender.take(MANY, usize::MAX, until).unwrap()), [1]);
    assert!(sender.next_due().is_some());
    // The other instance is gone: what it left comes first.
    append(&mut sender, &events[4..]);
    assert_eq!(numbers(&take_all(&mut sender)), [3, 4, 5, 6]);
    adds_up(&sender);
}

/// The sender's commit may wait for another instance, which begins or ends meanwhile.
#[test]
fn a_place_is_given_by_what_is_true_within_the_commit() {
    thread_local!(static LAST: Cell<Option<Connection>> = const { Cell::new(None) });
    let mut bench = Bench::new();
    let (mut sender, mut other) = (bench.open(), bench.open_only());
    let events: Vec<_> = (0..4).map(|_| bench.event(Rank::Four, "u")).collect();
    // It began: its earlier event will be committed later.
    let asked = Cell::new(0);
    let begins = || asked.replace(asked.get() + 1) > 0;
    sender.append(&[intake(&events[1])], DELAY, &begins).unwrap();
    other.append(&[intake(&events[0])], DELAY, &|| true).unwrap();
    assert_eq!(numbers(&take_all(&mut sender)), [1, 2]);
    // It ends, and the sender waits for its last commit.
    let last = Connection::open(bench.file()).unwrap();
    other.append(&[intake(&events[2])], DELAY, &|| true).unwrap();
    last.execute_batch(
        "BEGIN; CREATE TEMP TABLE late AS SELECT * FROM pending ORDER BY id DESC LIMIT 1;
         DELETE FROM pending WHERE id IN (SELECT id FROM late); COMMIT",
    )
    .unwrap();
    sender.sync().unwrap();
    assert_eq!(numbers(&take_all(&mut sender)), [0; 0]);
    last.execute_batch("BEGIN IMMEDIATE; INSERT INTO pending SELECT * FROM late").unwrap();
    LAST.set(Some(last));
    let commit = |_| LAST.take().is_some_and(|last| last.execute_batch("COMMIT").is_ok());
    sender.db.busy_handler(Some(commit)).unwrap();
    sender.append(&[intake(&events[3])], DELAY, &|| false).unwrap();
    assert!(LAST.take().is_none(), "it did not wait");
    assert_eq!(numbers(&take_all(&mut sender)), [3, 4]);
}

#[test]
fn a_successful_login_withdraws_the_failed_one_before_it() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    let mut writer = bench.open_only();
    let mut login = |kind, account: [u8; 8], ip: [u8; 4]| {
        bench.next += 1;
        let url = format!("/{}", bench.next);
        let mut capture = Capture::new(wall_ms());
        (capture.kind, capture.ip) = (kind, Some(IpAddr::from(ip)));
        capture.status = if kind == EventType::AccountLogin { 200 } else { 401 };
        capture.is_first_step = kind == EventType::AccountLoginFail;
        capture.trace = format!("{:032x}", bench.next).into_bytes().try_into().unwrap();
        capture.set(Param::Url, url.as_bytes()).unwrap();
        capture.set_extra(Extra::Account, &account);
        let mut bytes = vec![0; capture.record_len()];
        capture.write(monotonic_ns(), &mut bytes);
        append(&mut writer, &[bytes]);
        adds_up(&writer)
    };
    let (here, there) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    login(EventType::AccountLoginFail, [1; 8], here);
    login(EventType::AccountLoginFail, [1; 8], here);
    login(EventType::AccountLoginFail, [2; 8], here);
    login(EventType::AccountLoginFail, [1; 8], there);
    let totals = login(EventType::AccountLogin, [1; 8], here);
    assert_eq!((totals.collected, totals.pending, totals.withdrawn), (5, 4, 1));
    // The failed ones wait.
    database.sync().unwrap();
    assert_eq!(numbers(&take_all(&mut database)), [5]);
    let due = database.next_due().unwrap();
    assert!(due > database.now() && due.since(database.now()) <= DELAY);
    database.db.execute("UPDATE pending SET due = stamp WHERE due > 0", []).unwrap();
    // Asked of another connection, this is a change by somebody else.
    database.sending.as_mut().unwrap().unordered = Some(Stamp::default());
    assert_eq!(numbers(&take_all(&mut database)), [1, 3, 4]);
    // What has waited is not withdrawn any more: it may be on its way.
    assert_eq!(login(EventType::AccountLogin, [1; 8], here).withdrawn, 1);
}

#[test]
fn another_versions_database_is_left_alone() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 1);
    database.db.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    let error = Database::open(&bench.config, &bench.file(), INSTANCE).unwrap_err();
    assert!(!error.is_corrupt() && error.to_string().contains("another version"), "{error}");
}

/// What 0.1.0 made.
const LAYOUT_1: &str = include_str!("layout1.sql");

#[test]
fn a_database_of_the_first_layout_goes_on() {
    let mut bench = Bench::new();
    {
        let old = Connection::open(bench.file()).unwrap();
        old.pragma_update(None, "journal_mode", "WAL").unwrap();
        old.execute_batch(LAYOUT_1).unwrap();
    }
    let mut database = bench.open();
    let t = adds_up(&database);
    assert_eq!((t.pending, t.delivered, t.rejected, t.withdrawn), (3, 2, 2, 1));
    assert_eq!(
        database.rejected_by_reason().unwrap(),
        [(Fault::Answered(400), 1), (Fault::Answered(403), 1)]
    );
    let events = take_all(&mut database);
    assert_eq!(numbers(&events), [12, 10, 11], "a failed login goes before what is only looked at");
    assert_eq!(events[0].rank, Rank::Three);
    assert_eq!(events[1].user, intake(&bench.event(Rank::Four, "alice")).view.user_key());
    // Keys are not used again, and the old triggers are gone.
    bench.append(&mut database, Rank::One, "alice", 1);
    assert!(take_all(&mut database)[0].id > 1_700_000_000_000_012);
    adds_up(&database);
    // It can shrink from now on.
    database.shrink().unwrap();
    let auto: i64 = database.db.query_row("PRAGMA auto_vacuum", [], |row| row.get(0)).unwrap();
    assert_eq!(auto, 2);
    drop(database);
    adds_up(&bench.open());
}

#[test]
fn a_boot_with_a_clock_far_ahead_expires_nothing() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 3);
    // They were captured twelve years ago, as this boot's clock has it.
    let years = 12 * 365 * 24 * 60 * 60 * 1_000_000_000_i64;
    database.db.execute("UPDATE pending SET stamp = stamp - ?1", [years]).unwrap();
    set_total(&database.db, "boot", 1).unwrap();
    drop(database);
    bench.config.max_age = Duration::from_secs(2 * 24 * 60 * 60);
    let mut database = bench.open();
    assert_eq!(database.expire().unwrap(), 0);
    assert_eq!(database.totals().pending, 3);
}

#[test]
fn the_clock_goes_on_after_a_boot() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    let event = bench.event(Rank::Four, "u");
    let intake = Intake { ring: Some(1), ..intake(&event) };
    database.append(&[intake], DELAY, &|| false).unwrap();
    // The wall's clock was an hour ahead, and this is another boot.
    let ahead = database.now().0 + 3_600_000_000_000;
    database.db.execute("UPDATE pending SET stamp = ?1", [ahead]).unwrap();
    set_total(&database.db, "boot", 0).unwrap();
    let mut again = bench.open();
    assert!(again.now().0 > ahead);
    assert_eq!(bench.open().epoch, again.epoch);
    // The rings of the boot before are gone.
    assert_eq!(again.append(&[intake], DELAY, &|| false).unwrap().stored, 1);
}

#[test]
fn another_instance_is_seen_while_it_lives() {
    let bench = Bench::new();
    let file = bench.file();
    assert!(!is_shared(&file, 7_000));
    let own = announce(&file, 7_000).unwrap();
    assert!(!is_shared(&file, 7_000) && is_shared(&file, 9_000) && is_shared(&file, 5_000));
    let other = announce(&file, 9_000).unwrap();
    assert!(is_shared(&file, 7_000));
    drop(other);
    assert!(!is_shared(&file, 7_000));
    // The right to send is another lock.
    assert!(Sender::try_lock(&file).is_ok());
    drop(own);
}

#[test]
fn what_lies_in_the_locks_place_is_not_followed() {
    let bench = Bench::new();
    let (lock, victim) = (bench.file().with_extension("lock"), bench.dir.path().join("victim"));
    fs::write(&victim, "").unwrap();
    std::os::unix::fs::symlink(&victim, &lock).unwrap();
    assert!(announce(&bench.file(), 1).is_err());
    fs::remove_file(&lock).unwrap();
    fs::hard_link(&victim, &lock).unwrap();
    assert!(announce(&bench.file(), 1).is_err());
    fs::remove_file(&lock).unwrap();
    let name = std::ffi::CString::new(lock.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(announce(&bench.file(), 1).is_err());
    fs::remove_file(&lock).unwrap();
    assert!(announce(&bench.file(), 1).is_ok());
}

#[test]
fn ids_are_never_used_again() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 1);
    let first = take_all(&mut database);
    settle(&mut database, &first, Outcome::Delivered);
    bench.append(&mut database, Rank::Four, "u", 1);
    assert!(take_all(&mut database)[0].id > first[0].id);
}

#[test]
fn a_full_spool_drops_the_lowest_rank_first() {
    for when_full in [WhenFull::DropOldest, WhenFull::DropNewest] {
        let mut bench = Bench::new();
        bench.config.when_full = when_full;
        bench.config.max_size = 100_000;
        let mut database = bench.open();
        bench.append(&mut database, Rank::Three, "u", 20);
        let pages = bench.append(&mut database, Rank::Four, "u", 500);
        assert!(pages.dropped > 0, "{pages:?}");
        let changes = bench.append(&mut database, Rank::Two, "v", 200);
        assert_eq!(changes.stored, 200, "{when_full:?}");
        let logins = bench.append(&mut database, Rank::One, "w", 40);
        assert_eq!(logins.stored, 40, "{when_full:?}");
        let t = adds_up(&database);
        assert!(t.bytes <= 100_000);
        let there = take_all(&mut database);
        let of = |rank| there.iter().filter(|event| event.rank == rank).count();
        assert_eq!(of(Rank::One), 40);
        assert!(of(Rank::Two) == 200 || of(Rank::Four) == 0, "{when_full:?}");
        assert_eq!(t.collected, 760);
    }
}

#[test]
fn of_one_user_the_oldest_or_the_newest_go() {
    for when_full in [WhenFull::DropOldest, WhenFull::DropNewest] {
        let mut bench = Bench::new();
        bench.config.when_full = when_full;
        bench.config.max_size = 100_000;
        let mut database = bench.open();
        bench.append(&mut database, Rank::Four, "u", 500);
        let there = numbers(&take_all(&mut database));
        assert_eq!(there.contains(&1), when_full == WhenFull::DropNewest);
        assert_eq!(there.contains(&500), when_full == WhenFull::DropOldest);
    }
}

#[test]
fn nobody_fills_the_spool_alone() {
    for when_full in [WhenFull::DropOldest, WhenFull::DropNewest] {
        let mut bench = Bench::new();
        bench.config.when_full = when_full;
        bench.config.max_size = 100_000;
        let mut database = bench.open();
        bench.append(&mut database, Rank::Four, "many", 500);
        for user in 0..20 {
            assert_eq!(bench.append(&mut database, Rank::Four, &format!("u{user}"), 3).stored, 3);
        }
        bench.append(&mut database, Rank::Four, "many", 500);
        let there = numbers(&take_all(&mut database));
        let others = there.iter().filter(|n| (501..=560).contains(*n)).count();
        assert_eq!(others, 60, "{when_full:?}: {there:?}");
        adds_up(&database);
    }
}

#[test]
fn what_is_on_its_way_does_not_make_room() {
    let mut bench = Bench::new();
    bench.config.max_size = 100_000;
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 500);
    let sent = database.take([0, 0, 0, 50], usize::MAX, Stamp::END).unwrap();
    bench.append(&mut database, Rank::Four, "u", 500);
    settle(&mut database, &sent, Outcome::Delivered);
    assert_eq!(adds_up(&database).delivered, 50);
}

#[test]
fn old_events_are_dropped_whatever_the_walls_clock_says() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 3);
    let age = database.config.max_age;
    database.db.execute("UPDATE pending SET captured = '2001-01-01 00:00:00.000'", []).unwrap();
    let now = database.stamp(10);
    assert_eq!(database.expire_before(now.before(age)).unwrap(), 0);
    assert_eq!(database.expire_before(now).unwrap(), 3);
    assert_eq!(adds_up(&database).dropped, 3);
}

#[test]
fn what_is_deleted_or_added_by_hand_is_counted() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 3);
    let events = take_all(&mut database);
    let by_hand = Connection::open(bench.file()).unwrap();
    assert_eq!(database.sync().unwrap(), None);
    by_hand.execute("DELETE FROM pending WHERE id = ?1", [events[1].id as i64]).unwrap();
    assert_eq!(database.sync().unwrap(), Some(vec![events[1].id]));
    assert_eq!(adds_up(&database).dropped, 1);
    settle(&mut database, &events[..1], Outcome::Rejected(Fault::Answered(400)));
    // As the documentation says.
    by_hand
        .execute_batch(
            "INSERT INTO pending (trace_id, captured, type, user, user_key, body)
                 SELECT trace_id, captured, type, user, user_key, body FROM rejected;
             DELETE FROM rejected",
        )
        .unwrap();
    assert!(database.sync().unwrap().is_some());
    let again = take_all(&mut database);
    assert_eq!(numbers(&again), [1]);
    assert!(again[0].stamp > Stamp::default(), "it does not expire at once");
    settle(&mut database, &again, Outcome::Delivered);
    settle(&mut database, &events[2..], Outcome::Delivered);
    assert_eq!(adds_up(&database).pending, 0);
}

#[test]
fn nothing_is_left_of_a_delivered_event() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "find-me-if-you-can", 1);
    let events = take_all(&mut database);
    settle(&mut database, &events, Outcome::Delivered);
    database.checkpoint().unwrap();
    for file in fs::read_dir(bench.dir.path()).unwrap() {
        let content = fs::read(file.unwrap().path()).unwrap();
        assert!(!content.windows(14).any(|w| w == b"find-me-if-you"));
    }
}

#[test]
fn the_file_shrinks_again() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    let long = "x".repeat(90);
    for _ in 0..10 {
        bench.append(&mut database, Rank::Four, &long, 1000);
    }
    let size = || fs::metadata(bench.file()).unwrap().len();
    database.checkpoint().unwrap();
    let full = size();
    assert!(full > 4 << 20);
    let events = take_all(&mut database);
    settle(&mut database, &events, Outcome::Delivered);
    let mut steps = 1;
    while database.shrink().unwrap() {
        steps += 1;
    }
    database.checkpoint().unwrap();
    assert!(size() < 200_000, "{} of {full}", size());
    assert!(steps > 4, "one step is bounded");
}

#[test]
fn events_for_another_url_wait_and_are_found() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.append(&mut database, Rank::Four, "u", 3);
    let other = Database::file(&bench.config, "t", "http://elsewhere/sensor/");
    assert_ne!(other, bench.file());
    Database::open(&bench.config, &other, INSTANCE).unwrap();
    let longer = Database::file(&bench.config, "t-2", "http://t/sensor/");
    Database::open(&bench.config, &longer, INSTANCE).unwrap();
    let found = Database::others(&bench.config, "t", &other);
    assert_eq!(found, [(bench.file(), 3)]);
    assert!(Database::others(&bench.config, "t", &bench.file()).is_empty());
}

#[test]
fn a_damaged_database_is_set_aside() {
    let mut bench = Bench::new();
    fs::write(bench.file(), b"this is no database, but a text of some length ......").unwrap();
    let error = Database::open(&bench.config, &bench.file(), INSTANCE).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    let sender = Sender::try_lock(&bench.file()).unwrap();
    assert_eq!(Sender::try_lock(&bench.file()).err(), Some(Fault::Busy));
    let aside = set_aside(&bench.file(), &sender).unwrap();
    assert!(aside.exists());
    let mut database = bench.open();
    assert_eq!(bench.append(&mut database, Rank::Four, "u", 1).stored, 1);
    let mode = fs::metadata(bench.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// What this thread has written, in bytes.
fn written() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn an_event_costs_few_bytes_on_disk() {
    const EVENTS: u64 = 10_000;
    let mut bench = Bench::new();
    let mut database = bench.open();
    let query = "x".repeat(490);
    let mut event = |n: u64| {
        bench.next += 1;
        let (url, user) = (format!("/{n}?{query}"), format!("user-{}", n % 100));
        let mut capture = Capture::new(wall_ms());
        capture.trace = format!("{n:032x}").into_bytes().try_into().unwrap();
        capture.set(Param::Url, url.as_bytes()).unwrap();
        capture.set(Param::UserName, user.as_bytes()).unwrap();
        let mut bytes = vec![0; capture.record_len()];
        capture.write(bench.next, &mut bytes);
        bytes
    };
    let start = written();
    for batch in 0..EVENTS / 512 {
        let events: Vec<_> = (0..512).map(|n| event(batch * 512 + n)).collect();
        append(&mut database, &events);
    }
    let count = EVENTS / 512 * 512;
    let intake = (written() - start) / count;
    let totals = adds_up(&database);
    let size = totals.bytes / totals.pending - ROW_OVERHEAD;
    assert!((550..650).contains(&size), "{size}");
    let (start, began) = (written(), Instant::now());
    let mut left = count;
    while left > 0 {
        let events = database.take([SETTLE_FROM; 4], usize::MAX, Stamp::END).unwrap();
        left -= events.len() as u64;
        settle(&mut database, &events, Outcome::Delivered);
    }
    let drained = (written() - start) / count;
    println!(
        "{size} B: {intake} B written to take one in, {drained} B to send it; {:.0} us",
        began.elapsed().as_secs_f64() * 1e6 / count as f64
    );
    assert!(intake <= 3072 && drained <= 3072, "{intake} {drained}");
    while database.shrink().unwrap() {}
    assert!(adds_up(&database).pending == 0);
}
