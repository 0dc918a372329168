//! Compares the records with the expected ones.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use serde_json::Value;
use tirreno_tests::application::{Step, as_expected, cell};
use tirreno_tests::sensor::Sensor;

use crate::run::Run;

/// Prints the table, and returns whether all records are as expected.
pub(crate) fn print(run: &Run, sensor: &Sensor, audit: Option<&Path>) -> bool {
    let stage = &run.stage;
    let targets = stage.settle();
    let events = stage.events(sensor);
    println!("Mattermost {}, behind nginx with nginx-conf/mattermost.conf.\n", run.version);
    println!("| action | request | status | event | user | as expected |");
    println!("|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for step in &stage.steps {
        let found = events.get(&step.case).map_or(&[][..], |events| events);
        let recorded: Vec<_> =
            found.iter().map(|e| (e.event_type.clone(), run.name(&e.user_name))).collect();
        let flags: Vec<_> = found.iter().flat_map(|event| event.flagged.iter()).collect();
        let good = recorded.as_slice() == step.expected.as_slice()
            && step.status.0 == step.status.1
            && flags.is_empty();
        println!("{}", row(run, step, &recorded, good));
        if !good {
            wrong.push(format!("{}: {recorded:?} {flags:?}", step.what));
        }
    }
    stage.print_counts(&targets, &mut wrong);
    if let Some(path) = audit {
        compare(run, path, &mut wrong);
    }
    stage.print_secrets(sensor, &mut wrong);
    for line in &wrong {
        eprintln!("NOT AS EXPECTED  {line}");
    }
    wrong.is_empty()
}

fn row(run: &Run, step: &Step, recorded: &[(String, String)], good: bool) -> String {
    let path = run
        .names
        .iter()
        .fold(step.path.clone(), |path, (id, name)| path.replace(id, &format!("{{{name}}}")));
    let path: Vec<_> =
        path.split('/').map(|part| if is_id(part) { "{id}" } else { part }).collect();
    format!(
        "| {} | `{} {}` | {} | {} | {} | {} |",
        step.what,
        step.method,
        path.join("/"),
        step.status.0,
        cell(&recorded.iter().map(|(kind, _)| &**kind).collect::<Vec<_>>()),
        cell(&recorded.iter().map(|(_, user)| &**user).collect::<Vec<_>>()),
        as_expected(step, good),
    )
}

fn is_id(part: &str) -> bool {
    part.len() == 26 && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// An audit record: its event, status and path.
type Key = (String, String, String);

/// Mattermost's records that the module does not make: event, status, reason.
const OTHERWISE: &[(&str, &str, &str)] = &[
    ("createUser", "fail", "an account that nobody got, asked for by nobody known"),
    ("getFile", "success", "a download is one event a user, file and minute"),
    ("getFile", "fail", "there is no such file"),
    ("getLogs", "fail", "this version says so whether or not the logs were read"),
    ("logout", "success", "nobody was signed in"),
    ("sendVerificationEmail", "fail", "this version answers 200 nevertheless"),
];

/// Reports Mattermost's own audit records that have no record of the module.
fn compare(run: &Run, path: &Path, wrong: &mut Vec<String>) {
    let mut ours: HashMap<Key, usize> = HashMap::new();
    for key in records(&run.stage.nginx.prefix().join("logs/audit.log")) {
        *ours.entry(key).or_default() += 1;
    }
    let theirs = records(path);
    let mut otherwise: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for key in &theirs {
        let known =
            OTHERWISE.iter().find(|(event, status, _)| (*event, *status) == (&*key.0, &*key.1));
        match (ours.get_mut(key), known) {
            (Some(count), _) if *count > 0 => *count -= 1,
            (_, Some((event, _, why))) => otherwise.entry(event).or_insert((0, why)).0 += 1,
            (_, None) => wrong.push(format!("no audit record {key:?}")),
        }
    }
    let count: usize = otherwise.values().map(|(count, _)| count).sum();
    println!(
        "\nMattermost itself wrote {} audit records; {} of them are in the module's file under the same name.",
        theirs.len(),
        theirs.len() - count
    );
    for (event, (count, why)) in otherwise {
        println!("{count} × `{event}` is not: {why}.");
    }
}

fn records(path: &Path) -> Vec<Key> {
    let text = fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let record = |line: &str| {
        let record: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let event = match &*text("event") {
            // The event's name in later versions.
            "Logout" => "logout".into(),
            event => event.to_owned(),
        };
        // The id of an incoming webhook is a secret.
        let path = text("api_path");
        let path = match path.rsplit_once("/hooks/incoming/") {
            Some((start, _)) => format!("{start}/hooks/incoming/"),
            None => path,
        };
        Some((event, text("status"), path))
    };
    text.lines().filter_map(record).collect()
}
