//! The status in Prometheus' text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{Display, Write};

use super::{BY_STRENGTH, STATES, Snapshot, Target};
use crate::shm::metrics::LATENCY_BOUNDS_MS;

/// A metric of a target: its name, what it is, and its value.
type Row<N> = (&'static str, &'static str, fn(&Target) -> N);

/// The snapshot as metrics, one family after the other.
pub fn prometheus(snapshot: &Snapshot) -> String {
    let mut text = Text(String::new());
    text.family("tirreno_build_info", "gauge", "The version of the module.");
    text.sample("tirreno_build_info", &[("version", snapshot.version)], 1);

    let counters: [Row<u64>; 6] = [
        ("captured_events", "Events captured for the target.", |t| t.totals.captured),
        ("delivered_events", "Events that the target has taken.", |t| t.totals.delivered),
        ("rejected_events", "Events that the target refused.", |t| t.totals.rejected),
        ("merged_events", "Events that another one stands for.", |t| t.totals.merged),
        ("withdrawn_events", "Failed logins that were half of a successful one.", |t| {
            t.totals.withdrawn
        }),
        ("delivery_retries", "Attempts after which events were kept.", |t| t.totals.retries),
    ];
    for (name, help, read) in counters {
        let name = format!("tirreno_{name}_total");
        text.family(&name, "counter", help);
        for target in &snapshot.targets {
            text.sample(&name, &[("target", &target.name)], read(target));
        }
    }
    text.family("tirreno_dropped_events_total", "counter", "Events that were given up.");
    for target in &snapshot.targets {
        for (reason, n) in target.drops() {
            let labels = [("target", target.name.as_str()), ("reason", reason)];
            text.sample("tirreno_dropped_events_total", &labels, n);
        }
    }
    let gauges: [Row<f64>; 2] = [
        ("pending_events", "Events on their way to the target.", |t| t.totals.pending as f64),
        ("oldest_pending_seconds", "Age of the oldest of them.", |t| {
            t.totals.oldest_pending_ms as f64 / 1000.0
        }),
    ];
    for (name, help, read) in gauges {
        let name = format!("tirreno_{name}");
        text.family(&name, "gauge", help);
        for target in &snapshot.targets {
            text.sample(&name, &[("target", &target.name)], read(target));
        }
    }
    text.family("tirreno_target_state", "gauge", "1 for the state that the target is in.");
    for target in &snapshot.targets {
        for state in STATES {
            let labels = [("target", target.name.as_str()), ("state", state)];
            text.sample("tirreno_target_state", &labels, u8::from(target.state() == state));
        }
    }
    spools(&mut text, snapshot);
    latencies(&mut text, snapshot);

    text.family(
        "tirreno_events_total",
        "counter",
        "Events by type and by what tells whose they are.",
    );
    for (kind, by) in &snapshot.events {
        for identity in BY_STRENGTH {
            let labels = [("type", kind.name()), ("identity", identity.name())];
            text.sample("tirreno_events_total", &labels, by[identity as usize]);
        }
    }
    let help = "Events whose client claimed to be somebody else than the application says.";
    text.family("tirreno_identity_mismatches_total", "counter", help);
    text.sample("tirreno_identity_mismatches_total", &[], snapshot.identity("mismatched"));
    let help = "Accepted requests whose session could not be read, or was not proven.";
    text.family("tirreno_unreadable_sessions_total", "counter", help);
    text.sample("tirreno_unreadable_sessions_total", &[], snapshot.identity("unreadable_session"));
    let help = "Requests that are no event; invalid: also events without a value that is too long.";
    text.family("tirreno_skipped_requests_total", "counter", help);
    for (reason, n) in &snapshot.skipped {
        text.sample("tirreno_skipped_requests_total", &[("reason", reason)], n);
    }
    text.family("tirreno_zone_fill_ratio", "gauge", "Share of the records' shared memory in use.");
    text.sample("tirreno_zone_fill_ratio", &[], snapshot.fill);
    text.0
}

fn spools(text: &mut Text, snapshot: &Snapshot) {
    let spools = || snapshot.targets.iter().filter(|target| target.has_spool);
    text.family("tirreno_spool_events", "gauge", "Events in the spool.");
    for target in spools() {
        text.sample(
            "tirreno_spool_events",
            &[("target", &target.name)],
            target.totals.stored.pending,
        );
    }
    text.family("tirreno_spool_bytes", "gauge", "Size of the events in the spool.");
    for target in spools() {
        text.sample("tirreno_spool_bytes", &[("target", &target.name)], target.totals.stored.bytes);
    }
    text.family(
        "tirreno_set_aside_events",
        "gauge",
        "Rejected events by reason: those that the spool keeps; without one, all.",
    );
    for target in &snapshot.targets {
        for (why, n) in &target.totals.set_aside {
            let labels = [("target", target.name.as_str()), ("reason", &why.to_string())];
            text.sample("tirreno_set_aside_events", &labels, n);
        }
    }
}

fn latencies(text: &mut Text, snapshot: &Snapshot) {
    text.family("tirreno_delivery_seconds", "histogram", "Time from capture to delivery.");
    for target in &snapshot.targets {
        let mut count = 0;
        for (at, n) in target.latency.buckets.iter().enumerate() {
            count += n;
            let bound = LATENCY_BOUNDS_MS
                .get(at)
                .map_or("+Inf".to_owned(), |bound| (*bound as f64 / 1000.0).to_string());
            let labels = [("target", target.name.as_str()), ("le", &bound)];
            text.sample("tirreno_delivery_seconds_bucket", &labels, count);
        }
        let labels = [("target", target.name.as_str())];
        let sum = target.latency.sum_ms as f64 / 1000.0;
        text.sample("tirreno_delivery_seconds_sum", &labels, sum);
        text.sample("tirreno_delivery_seconds_count", &labels, count);
    }
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}
