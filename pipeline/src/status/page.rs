//! The status as a page for people. It loads nothing from elsewhere, and its security policy says so.

use std::fmt::Write;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use sha2::{Digest, Sha256};

use super::{BY_STRENGTH, Snapshot, Target, advice};
use crate::clock::wall_ms;
use crate::event::EventType;
use crate::shm::metrics::{LATENCY_BOUNDS_MS, SLOTS};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The value of `Content-Security-Policy` for the page: its own style and script and no other.
pub static SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// The snapshot as a page in HTML.
pub fn page(snapshot: &Snapshot) -> String {
    let mut out = String::with_capacity(16 * 1024);
    let time = DateTime::<Utc>::from_timestamp_millis(wall_ms()).unwrap_or_default();
    let time = time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>tirreno status</title>\
         <link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head>\n<body>\
         <header><h1>Events to Tirreno</h1><span id=\"note\" class=\"soft\">as of {time}; reload for newer numbers</span>\
         </header>\n<main>\n"
    );
    verdict(&mut out, snapshot);
    snapshot.targets.iter().for_each(|target| section(&mut out, target));
    requests(&mut out, snapshot);
    let _ = write!(
        out,
        "</main>\n<footer>ngx-tirreno {} &middot; numbers since nginx was started</footer>\
         <script>{SCRIPT}</script></body></html>\n",
        snapshot.version
    );
    out
}

fn verdict(out: &mut String, snapshot: &Snapshot) {
    let ill = snapshot.targets.iter().filter(|target| !target.is_well()).count();
    let lossy = snapshot.targets.iter().filter(|target| target.totals.all_dropped() > 0).count();
    let (class, text) = match (snapshot.targets.len(), ill, lossy) {
        (0, ..) => ("warn", "No target is configured: nothing is recorded.".to_owned()),
        (_, 0, 0) => ("good", "All is well: events are being delivered, none was lost.".to_owned()),
        (_, 0, _) => (
            "warn",
            "Events are being delivered; some were lost since nginx was started.".to_owned(),
        ),
        (1, ..) => ("bad", "The target needs attention.".to_owned()),
        (all, ill, _) => ("bad", format!("{ill} of {all} targets need attention.")),
    };
    let _ = writeln!(out, "<p class=\"verdict {class}\" id=\"verdict\">{text}</p>");
}

fn section(out: &mut String, target: &Target) {
    let totals = &target.totals;
    let class = match target.state() {
        "ok" => "good",
        "degraded" | "waiting" => "warn",
        _ => "bad",
    };
    let _ = write!(
        out,
        "<section data-target=\"{0}\"><div class=\"head\"><h2>{0}</h2><span class=\"soft\">{1}</span>\
         <span class=\"badge {class}\" data-key=\"state\" data-value=\"{2}\">{3}</span></div>",
        escaped(&target.name),
        target.kind,
        target.state(),
        advice::state(target.state()),
    );
    if let Some((fault, ms)) = totals.last_fault {
        let ago = seconds((wall_ms() - ms).max(0) as f64 / 1000.0);
        let (class, what) =
            if target.is_well() { ("soft", "Last trouble") } else { (class, "Reason") };
        let _ = write!(
            out,
            "<p class=\"{class}\">{what}: <span data-key=\"last_error\">{}</span>, {ago} ago</p>",
            escaped(&fault.to_string())
        );
    }
    if let Some(text) = advice::target(target) {
        let _ = write!(out, "<p class=\"advice\">{}</p>", escaped(text));
    }
    numbers(out, target);
    out.push_str("<div class=\"plots\">");
    hour(out, target);
    latency(out, target);
    out.push_str("</div>");
    losses(out, target);
    out.push_str("</section>\n");
}

fn numbers(out: &mut String, target: &Target) {
    let totals = &target.totals;
    out.push_str("<dl>");
    let counters = [
        ("pending", "pending", totals.pending, false),
        ("captured", "captured", totals.captured, false),
        ("delivered", "delivered", totals.delivered, false),
        ("dropped", "dropped", totals.all_dropped(), true),
        ("rejected", "rejected", totals.rejected, true),
        ("merged", "merged", totals.merged, false),
        ("withdrawn", "withdrawn", totals.withdrawn, false),
        ("retries", "attempts repeated", totals.retries, false),
    ];
    let _ = write!(
        out,
        "<div><dt>now</dt><dd data-key=\"rate\">{:.1}/s</dd></div><div><dt>oldest pending</dt><dd>{}</dd></div>",
        target.recent.per_second,
        if totals.pending == 0 {
            "none".to_owned()
        } else {
            seconds(totals.oldest_pending_ms as f64 / 1000.0)
        },
    );
    for (key, words, n, is_loss) in counters {
        let class = if is_loss && n > 0 { " class=\"bad\"" } else { "" };
        let _ = write!(
            out,
            "<div><dt>{words}</dt><dd{class} data-key=\"{key}\" data-value=\"{n}\">{}</dd></div>",
            grouped(n)
        );
    }
    if target.has_spool {
        let _ = write!(
            out,
            "<div><dt>in the spool</dt><dd data-key=\"spool.events\" data-value=\"{0}\">{1}</dd></div>\
             <div><dt>its size</dt><dd data-key=\"spool.bytes\" data-value=\"{2}\">{3:.1} MB</dd></div>",
            totals.stored.pending,
            grouped(totals.stored.pending),
            totals.stored.bytes,
            totals.stored.bytes as f64 / 1e6,
        );
        if let Some(left) = totals.drain_seconds.filter(|_| totals.pending > 0) {
            let _ =
                write!(out, "<div><dt>caught up in</dt><dd>{}</dd></div>", seconds(left as f64));
        }
    }
    out.push_str("</dl>");
}

/// The events of each slot, as a line.
fn hour(out: &mut String, target: &Target) {
    let slots = &target.recent.slots;
    let most = slots.iter().copied().max().unwrap_or(0);
    let _ = write!(
        out,
        "<div><h3>Delivered in the last hour: {}</h3><svg viewBox=\"0 0 {SLOTS} 40\" preserveAspectRatio=\"none\" \
         role=\"img\" aria-label=\"events delivered in each half minute\"><line x1=\"0\" y1=\"39.5\" x2=\"{SLOTS}\" y2=\"39.5\"/><path d=\"",
        grouped(slots.iter().map(|n| u64::from(*n)).sum()),
    );
    let first = SLOTS - slots.len();
    for (at, n) in slots.iter().enumerate() {
        let y = 39.0 - 37.0 * f64::from(*n) / f64::from(most.max(1));
        let _ = write!(out, "{}{} {y:.1}", if at == 0 { 'M' } else { 'L' }, first + at);
    }
    let _ = write!(
        out,
        "\"/></svg><div class=\"scale\"><span>an hour ago</span><span>at most {}/s</span><span>now</span></div></div>",
        format_rate(f64::from(most) / crate::shm::metrics::SLOT_SECONDS as f64),
    );
}

fn format_rate(rate: f64) -> String {
    if rate >= 10.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

/// The time to delivery as bars.
fn latency(out: &mut String, target: &Target) {
    let buckets = &target.latency.buckets;
    let (most, count) = (buckets.iter().copied().max().unwrap_or(0), buckets.iter().sum::<u64>());
    let bound = |share: f64| {
        let mut left = (count as f64 * share).ceil() as u64;
        let at = buckets.iter().position(|n| {
            let is_here = *n >= left;
            left = left.saturating_sub(*n);
            is_here
        });
        at.and_then(|at| LATENCY_BOUNDS_MS.get(at)).map_or("more than a day".to_owned(), |ms| {
            format!("within {}", seconds(*ms as f64 / 1000.0))
        })
    };
    let summary = if count == 0 {
        "none yet".to_owned()
    } else {
        format!("half {}, 95 % {}", bound(0.5), bound(0.95))
    };
    let _ = write!(
        out,
        "<div><h3>From capture to delivery: {summary}</h3><svg viewBox=\"0 0 {} 40\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"events by the time that they took\"><line x1=\"0\" y1=\"39.5\" x2=\"{0}\" y2=\"39.5\"/>",
        buckets.len() * 10,
    );
    for (at, n) in buckets.iter().enumerate() {
        let height = 38.0 * *n as f64 / most.max(1) as f64;
        let _ = write!(
            out,
            "<rect x=\"{}\" y=\"{:.1}\" width=\"8\" height=\"{height:.1}\"/>",
            at * 10 + 1,
            39.0 - height
        );
    }
    out.push_str("</svg><div class=\"scale\"><span>50 ms</span><span>1 s</span><span>1 min</span><span>a day</span></div></div>");
}

fn losses(out: &mut String, target: &Target) {
    let drops: Vec<_> = target.drops().filter(|(_, n)| *n > 0).collect();
    if !drops.is_empty() {
        out.push_str("<h3>Dropped</h3><table>");
        for (reason, n) in drops {
            let _ = write!(
                out,
                "<tr><td class=\"bad\">{}</td><td>{}</td><td class=\"words\">{}</td></tr>",
                reason.replace('_', " "),
                grouped(n),
                advice::dropped(reason)
            );
        }
        out.push_str("</table>");
    }
    if !target.totals.set_aside.is_empty() {
        out.push_str(match target.has_spool {
            true => "<h3>Set aside in the spool's table rejected, to be looked at and sent again</h3><table>",
            false => "<h3>Rejected</h3><table>",
        });
        for (why, n) in &target.totals.set_aside {
            let _ = write!(
                out,
                "<tr><td>{}</td><td>{}</td></tr>",
                escaped(&why.to_string()),
                grouped(*n)
            );
        }
        out.push_str("</table>");
    }
    rejected(out, target);
}

/// The last rejected events.
fn rejected(out: &mut String, target: &Target) {
    let events = &target.totals.rejected_events;
    if events.is_empty() {
        return;
    }
    let ids = if target.has_spool { "<th>id in the spool</th>" } else { "" };
    let _ = write!(
        out,
        "<h3>Rejected last</h3><p class=\"soft\">{}</p><div class=\"wide\"><table><tr><th>captured</th>\
         <th>type</th><th>reason</th><th>trace id</th>{ids}</tr>",
        advice::rejected(target.has_spool)
    );
    for event in events {
        let captured = DateTime::from_timestamp_millis(event.captured_ms).unwrap_or_default();
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            captured.to_rfc3339_opts(SecondsFormat::Millis, true),
            event.kind.map_or("", EventType::name),
            escaped(&event.fault.to_string()),
            event.trace.as_str(),
        );
        if target.has_spool {
            let id = event.id.map(|id| id.to_string()).unwrap_or_default();
            let _ = write!(out, "<td>{id}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
}

fn requests(out: &mut String, snapshot: &Snapshot) {
    out.push_str("<section id=\"requests\"><h2>Requests</h2><h3>What tells whose an event is</h3><div class=\"wide\"><table><tr><th>type</th>");
    for identity in BY_STRENGTH {
        let _ = write!(out, "<th>{}</th>", identity.name());
    }
    out.push_str("</tr>");
    for (kind, by) in snapshot.events.iter().filter(|(_, by)| by.iter().any(|n| *n > 0)) {
        let _ = write!(out, "<tr><td>{}</td>", kind.name());
        for identity in BY_STRENGTH {
            let _ = write!(out, "<td>{}</td>", grouped(by[identity as usize]));
        }
        out.push_str("</tr>");
    }
    let all: u64 = BY_STRENGTH.iter().map(|identity| snapshot.identity(identity.name())).sum();
    out.push_str("<tr><td>all</td>");
    for identity in BY_STRENGTH {
        let n = snapshot.identity(identity.name());
        let share = 100.0 * n as f64 / all.max(1) as f64;
        let _ = write!(
            out,
            "<td data-key=\"identity.{}\" data-value=\"{n}\">{} <span class=\"soft\">{share:.0} %</span></td>",
            identity.name(),
            grouped(n)
        );
    }
    out.push_str("</tr></table></div>");
    for (key, words) in [
        (
            "mismatched",
            "events whose client claimed to be somebody else: look for claimed_user_id in audit records",
        ),
        (
            "unreadable_session",
            "accepted requests without a session that can be read: see tirreno_session",
        ),
    ] {
        let n = snapshot.identity(key);
        let class = if n > 0 { "warn" } else { "soft" };
        let _ = write!(
            out,
            "<p class=\"{class}\"><span data-key=\"identity.{key}\" data-value=\"{n}\">{}</span> {words}</p>",
            grouped(n)
        );
    }
    out.push_str("<h3>No event, or not whole</h3><table>");
    for (reason, n) in &snapshot.skipped {
        let _ = write!(
            out,
            "<tr><td>{}</td><td data-key=\"skipped.{reason}\" data-value=\"{n}\">{}</td><td class=\"words soft\">{}</td></tr>",
            reason.replace('_', " "),
            grouped(*n),
            advice::skipped(reason)
        );
    }
    let class = if snapshot.fill > 0.5 { "bad" } else { "soft" };
    let _ = writeln!(
        out,
        "</table><p class=\"{class}\">Shared memory for records: {:.0} % in use{}</p></section>",
        snapshot.fill * 100.0,
        if snapshot.fill > 0.5 { ". Nobody collects, or tirreno_zone is too small" } else { "" },
    );
}

/// A duration in seconds, in the unit that suits it.
pub(super) fn seconds(n: f64) -> String {
    match n {
        n if n < 1.0 => format!("{:.0} ms", n * 1000.0),
        // Tenths where there are any: a time of 2.5 s is not within 2 s.
        n if n < 10.0 => format!("{} s", (n * 10.0).round() / 10.0),
        n if n < 120.0 => format!("{n:.0} s"),
        n if n < 7200.0 => format!("{:.0} min", n / 60.0),
        n if n < 172_800.0 => format!("{:.0} h", n / 3600.0),
        n => format!("{:.0} days", n / 86_400.0),
    }
}

/// `1234567` as `1 234 567`, with spaces where no line breaks.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
