//! Requests with names, and their events.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::nginx::Nginx;
use crate::sensor::{Sensor, StoredEvent};
use crate::wait::{wait_for, wait_until};

/// The header in which a request carries its name.
pub const CASE: &str = "X-Case";

/// For `http {}`: the access log that [`events`] reads.
pub const LOG: &str = "
    log_format cases '$http_x_case $request_id $tirreno_event $tirreno_user $tirreno_captured';
    access_log %PREFIX%/cases.log cases;";

const SOON: Duration = Duration::from_secs(30);

/// Waits until the requests of these names are logged and their events are delivered, and returns all
/// events by the names of their requests.
///
/// # Panics
/// When an event is of no request.
pub fn events<'c>(
    nginx: &Nginx,
    sensor: &Sensor,
    names: impl IntoIterator<Item = &'c str>,
) -> BTreeMap<String, Vec<Arc<StoredEvent>>> {
    let log = || fs::read_to_string(nginx.prefix().join("cases.log")).unwrap_or_default();
    let names: Vec<_> = names.into_iter().collect();
    wait_until(SOON, "the requests in the access log", || {
        let log = log();
        let logged: HashSet<_> = log.lines().filter_map(|line| line.split(' ').next()).collect();
        names.iter().all(|name| logged.contains(name))
    });
    let captured = || {
        let log = log();
        let of_case = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            (words.last() == Some(&"1")).then(|| (words[1].to_owned(), words[0].to_owned()))
        };
        log.lines().filter_map(of_case).collect::<HashMap<_, _>>()
    };
    wait_for(SOON, "the events of the access log", || {
        let stored = sensor.stored();
        let have = |id: &String| stored.iter().any(|e| e.trace_id.as_ref() == Some(id));
        let missing: Vec<_> = captured().into_iter().filter(|(id, _)| !have(id)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    });
    let captured = captured();
    let mut events: BTreeMap<String, Vec<Arc<StoredEvent>>> = BTreeMap::new();
    for event in sensor.stored() {
        let id = event.trace_id.clone().unwrap_or_default();
        let case = captured.get(&id).unwrap_or_else(|| panic!("{}", event.to_line()));
        events.entry(case.clone()).or_default().push(event);
    }
    events
}

/// Whether the name stands for an unknown account: `unknown-` and 16 hexadecimal digits.
pub fn is_alias(user: &str) -> bool {
    let digits = user.strip_prefix("unknown-");
    digits.is_some_and(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}
