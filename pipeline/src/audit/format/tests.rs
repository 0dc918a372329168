//! Tests each format, also with hostile values. [`elastic`] reads `mattermost` as Elastic does.

mod elastic;

use serde_json::{Map, Value, json};

use super::*;
use crate::capture::level::Level;
use crate::capture::session;
use crate::event::{EventType, Param};
use crate::privacy::Privacy;
use crate::record::{Capture, Extra, Record, push_segment};

/// 2021-12-04 23:19:32.051 UTC.
const TIME: i64 = 1_638_659_972_051;
const CHROME: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/96.0";

/// The captured facts of a request.
struct Request<'a> {
    kind: EventType,
    audit: &'a str,
    level: Option<Level>,
    status: u16,
    params: Vec<(Param, &'a [u8])>,
    segments: Vec<(&'a str, &'a [u8])>,
    fields: Vec<(&'a str, &'a [u8])>,
    claimed: &'a str,
    token: &'a str,
    ip: &'a str,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Self {
            kind: EventType::PageView,
            audit: "",
            level: None,
            status: 200,
            params: Vec::new(),
            segments: Vec::new(),
            fields: Vec::new(),
            claimed: "",
            token: "",
            ip: "192.0.2.7",
        }
    }
}

impl Request<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut capture = Capture::new(TIME);
        capture.kind = self.kind;
        capture.status = self.status;
        capture.ip = self.ip.parse().ok();
        capture.trace = [b'7'; 32];
        for (param, value) in &self.params {
            capture.set(*param, value).unwrap();
        }
        let mut segments = Vec::new();
        for (name, value) in &self.segments {
            push_segment(&mut segments, name, value);
        }
        let mut fields = Vec::new();
        for (name, value) in &self.fields {
            push_segment(&mut fields, name, value);
        }
        let level = self.level.map(|level| level.number().to_ne_bytes());
        let token = session::plain_token(self.token.as_bytes());
        let session = token.map(|token| session::digest([token]));
        capture.set_extra(Extra::Audit, self.audit.as_bytes());
        capture.set_extra(Extra::Level, level.as_ref().map_or(&[], |level| level));
        capture.set_extra(Extra::Segments, &segments);
        capture.set_extra(Extra::Fields, &fields);
        capture.set_extra(Extra::Claimed, self.claimed.as_bytes());
        capture.set_extra(Extra::Session, session.as_ref().map_or(&[], |session| session));
        let mut bytes = vec![0; capture.record_len()];
        capture.write(1, &mut bytes);
        bytes
    }

    fn written(&self, formatter: &Formatter) -> String {
        let (bytes, privacy, mut out) = (self.bytes(), Privacy::default(), Vec::new());
        formatter.record(&privacy.view(Record::parse(&bytes).unwrap()), Length::Whole, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn json(&self, formatter: &Formatter) -> Value {
        serde_json::from_str(&self.written(formatter)).unwrap()
    }
}

/// A formatter with a known hash key.
fn formatter(name: &str, options: &[(&str, &str)]) -> Formatter {
    let mut config = FormatConfig::parse(name, options).unwrap();
    config.set_hash_key(b"key");
    Formatter::new(&config)
}

/// The output of `printf t0ken | openssl dgst -sha256 -binary | openssl dgst -sha256 -hmac key`.
const SESSION: &str = "5f857543dd7a3247a8ae167c2ed1eaad60665572cf0d2c798b84057ef5523210";

/// A request that changes a post.
fn patch() -> Request<'static> {
    Request {
        kind: EventType::PageEdit,
        audit: "patchPost",
        level: Some(Level::Content),
        params: vec![
            (Param::UserName, b"u1"),
            (Param::HttpMethod, b"PUT"),
            (Param::Url, b"/api/v4/posts/p1/patch?x=1"),
            (Param::UserAgent, CHROME.as_bytes()),
            (Param::HttpReferer, b"https://chat.example.com/"),
            (Param::BrowserLanguage, b"en"),
            (Param::FullName, b"Ann Example"),
        ],
        segments: vec![("post_id", b"p1")],
        token: "t0ken",
        ..Request::default()
    }
}

const DROPS: Drops = Drops { count: 12, first_ms: TIME, last_ms: TIME + 61_000 };

fn dropped(formatter: &Formatter) -> String {
    let mut out = Vec::new();
    formatter.drops(&DROPS, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn json_is_one_flat_object() {
    let formatter = formatter("json", &[("cluster_id", "c1")]);
    let expected = json!({
        "timestamp": "2021-12-04T23:19:32.051Z",
        "level": "audit-content",
        "msg": "patchPost success",
        "event": "patchPost",
        "type": "page_edit",
        "status": "success",
        "code": 200,
        "user_id": "u1",
        "identity": "none",
        "session_id": SESSION,
        "ip_address": "192.0.2.7",
        "method": "PUT",
        "url": "/api/v4/posts/p1/patch?x=1",
        "api_path": "/api/v4/posts/p1/patch",
        "client": CHROME,
        "referer": "https://chat.example.com/",
        "language": "en",
        "trace_id": "7".repeat(32),
        "post_id": "p1",
        "full_name": "Ann Example",
        "cluster_id": "c1",
    });
    // Compared as text, because the order of keys matters.
    assert_eq!(patch().written(&formatter), expected.to_string());
    assert_eq!(formatter.terminator(), b"\n");
    let expected = json!({
        "timestamp": "2021-12-04T23:20:33.051Z",
        "level": "audit-api",
        "msg": "audit_records_dropped fail",
        "event": "audit_records_dropped",
        "status": "fail",
        "cluster_id": "c1",
        "dropped": 12,
        "dropped_first": "2021-12-04T23:19:32.051Z",
        "dropped_last": "2021-12-04T23:20:33.051Z",
    });
    assert_eq!(dropped(&formatter), expected.to_string());
}

#[test]
fn what_json_can_do_without() {
    let keys = |options: &[(&str, &str)]| -> String {
        let json = Request::default().json(&formatter("json", options));
        json.as_object().unwrap().keys().map(|k| format!("{k} ")).collect()
    };
    assert!(keys(&[]).starts_with("timestamp level msg event "));
    assert!(keys(&[("disable_timestamp", "on")]).starts_with("level msg event "));
    assert!(keys(&[("disable_level", "true")]).starts_with("timestamp msg event "));
    assert!(keys(&[("disable_msg", "on")]).starts_with("timestamp level event "));
    assert_eq!(keys(&[("disable_fields", "on"), ("disable_msg", "off")]), "timestamp level msg ");
    let seconds = formatter("json", &[("timestamp_format", "%d/%b/%Y:%H:%M:%S %z")]);
    assert_eq!(Request::default().json(&seconds)["timestamp"], "04/Dec/2021:23:19:32 +0000");
}

#[test]
fn fields_are_those_of_json() {
    let formatter = formatter("gelf", &[("cluster_id", "c1")]);
    let (bytes, privacy) = (patch().bytes(), Privacy::default());
    let fields = formatter.fields(&privacy.view(Record::parse(&bytes).unwrap()), Length::Whole);
    let json = patch().json(&self::formatter("json", &[("cluster_id", "c1")]));
    let texts = json.as_object().unwrap().iter().map(|(name, value)| {
        (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    });
    let expected: Vec<_> = texts.filter(|(name, _)| name != "timestamp" && name != "msg").collect();
    assert_eq!(fields, expected);
    let drops = formatter.drop_fields(&DROPS);
    assert!(drops.contains(&("dropped".into(), "12".into())));
}

#[test]
fn plain_is_a_line_to_read() {
    let mut request = patch();
    request.params.truncate(3);
    let trace = "7".repeat(32);
    let line = |options: &[(&str, &str)]| request.written(&formatter("plain", options));
    let fields = format!(
        "event=patchPost type=page_edit status=success code=200 user_id=u1 identity=none \
         session_id={SESSION} \
         ip_address=192.0.2.7 method=PUT url=\"/api/v4/posts/p1/patch?x=1\" \
         api_path=/api/v4/posts/p1/patch trace_id={trace} post_id=p1"
    );
    let time = "2021-12-04T23:19:32.051Z";
    assert_eq!(line(&[]), format!("{time} audit-content patchPost success {fields}"));
    assert_eq!(
        line(&[("min_level_len", "18"), ("min_msg_len", "20"), ("disable_fields", "on")]),
        format!("{time} audit-content      patchPost success   ")
    );
    assert_eq!(
        line(&[("delim", " | "), ("disable_timestamp", "on"), ("disable_fields", "on")]),
        "audit-content | patchPost success"
    );
    let only = [("disable_msg", "on"), ("disable_level", "on"), ("disable_fields", "on")];
    assert_eq!(line(&only), time);
    let none = [&only[..], &[("disable_timestamp", "on")]].concat();
    assert_eq!(line(&none), "");
    let color = line(&[("enable_color", "on"), ("disable_fields", "on")]);
    assert_eq!(color, format!("{time} \x1b[32maudit-content\x1b[0m patchPost success"));
    assert_eq!(
        line(&[("timestamp_format", "%s"), ("disable_fields", "on"), ("disable_level", "on")]),
        "1638659972 patchPost success"
    );
    assert_eq!(formatter("plain", &[("line_end", "\r\n")]).terminator(), b"\r\n");
    assert_eq!(formatter("plain", &[]).terminator(), b"\n");
    assert_eq!(
        dropped(&formatter("plain", &[("disable_level", "on")])),
        "2021-12-04T23:20:33.051Z audit_records_dropped fail event=audit_records_dropped \
         status=fail dropped=12 dropped_first=2021-12-04T23:19:32.051Z \
         dropped_last=2021-12-04T23:20:33.051Z"
    );
}

#[test]
fn gelf_is_version_1_1() {
    let formatter = formatter("gelf", &[("hostname", "proxy1")]);
    let mut request = patch();
    request.segments = vec![("id", b"7"), ("host", b"x")];
    let message = request.json(&formatter);
    assert!(request.written(&formatter).contains("\"timestamp\":1638659972.051,"));
    for (key, value) in [
        ("version", json!("1.1")),
        ("host", json!("proxy1")),
        ("short_message", json!("patchPost success")),
        ("level", json!(6)),
        ("_audit_level", json!("audit-content")),
        ("_code", json!(200)),
        ("_user_id", json!("u1")),
        // GELF does not allow a field `_id`.
        ("_target_id", json!("7")),
        ("_target_host", json!("x")),
    ] {
        assert_eq!(message[key], value, "{key}");
    }
    let own = ["version", "host", "short_message", "timestamp", "level"];
    let additional = |key: &&String| !own.contains(&key.as_str());
    for key in message.as_object().unwrap().keys().filter(additional) {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(key.starts_with('_') && key.chars().all(word) && key != "_id", "{key}");
        assert!(message[key].is_string() || message[key].is_number(), "{key}");
    }
    let drops: Value = serde_json::from_str(&dropped(&formatter)).unwrap();
    assert_eq!((&drops["_dropped"], &drops["level"]), (&json!(12), &json!(4)));
    let system = Request::default().json(&self::formatter("gelf", &[]));
    assert!(!system["host"].as_str().unwrap().is_empty());
}

#[test]
fn mattermost_has_its_keys_in_order() {
    let formatter = formatter("mattermost", &[("cluster_id", "c1")]);
    let mut request = patch();
    request.status = 403;
    request.segments =
        vec![("user_id", b"u2"), ("post_id", b"p1"), ("channel_id", b"ch1"), ("team_id", b"t1")];
    assert_eq!(
        request.written(&formatter),
        format!(
            "{{\"timestamp\":\"2021-12-04 23:19:32.051 Z\",\"event\":\"patchPost\",\
             \"status\":\"fail\",\"user_id\":\"u1\",\"session_id\":\"{SESSION}\",\
             \"ip_address\":\"192.0.2.7\",\"api_path\":\"/api/v4/posts/p1/patch\",\
             \"channel\":{{\"id\":\"ch1\"}},\"code\":403,\"identity\":\"none\",\
             \"post\":{{\"id\":\"p1\"}},\"team\":{{\"id\":\"t1\"}},\"user\":{{\"id\":\"u2\"}},\"cluster_id\":\"c1\",\
             \"client\":\"{CHROME}\"}}"
        )
    );
    let nobody = Request { ip: "", ..Request::default() };
    assert_eq!(
        nobody.written(&self::formatter("mattermost", &[])),
        "{\"timestamp\":\"2021-12-04 23:19:32.051 Z\",\"event\":\"page_view\",\
         \"status\":\"success\",\"user_id\":\"\",\"session_id\":\"\",\"ip_address\":\"\",\
         \"identity\":\"none\",\"client\":\"\"}"
    );
    assert_eq!(
        dropped(&formatter),
        "{\"timestamp\":\"2021-12-04 23:20:33.051 Z\",\"event\":\"audit_records_dropped\",\
         \"status\":\"fail\",\"user_id\":\"\",\"session_id\":\"\",\"ip_address\":\"\",\
         \"dropped\":12,\"dropped_first\":\"2021-12-04T23:19:32.051Z\",\
         \"dropped_last\":\"2021-12-04T23:20:33.051Z\",\"cluster_id\":\"c1\",\"client\":\"\"}"
    );
}

#[test]
fn mattermost_v7_is_the_standardized_record() {
    let formatter = formatter("mattermost_v7", &[("cluster_id", "c1")]);
    let expected = |status: &str, error: Value| {
        json!({
            "timestamp": "2021-12-04 23:19:32.051 Z",
            "event_name": "patchPost",
            "status": status,
            "actor": {
                "user_id": "u1",
                "session_id": SESSION,
                "client": CHROME,
                "ip_address": "192.0.2.7",
                "x_forwarded_for": "",
            },
            "event": {
                "parameters": {"identity": "none", "post_id": "p1"},
                "prior_state": {},
                "resulting_state": {},
                "object_type": "",
            },
            "meta": {"api_path": "/api/v4/posts/p1/patch", "cluster_id": "c1"},
            "error": error,
        })
    };
    let mut request = patch();
    assert_eq!(request.written(&formatter), expected("success", json!({})).to_string());
    request.status = 404;
    let fail = expected("fail", json!({"status_code": 404}));
    assert_eq!(request.written(&formatter), fail.to_string());
    let drops: Value = serde_json::from_str(&dropped(&formatter)).unwrap();
    assert_eq!(drops["event"]["parameters"]["dropped"], 12);
}

#[test]
fn ecs_needs_no_pipeline() {
    let formatter = formatter("ecs", &[("cluster_id", "c1")]);
    let mut request = patch();
    request.segments.push(("user_id", b"u2"));
    let expected = json!({
        "@timestamp": "2021-12-04T23:19:32.051Z",
        "ecs": {"version": "8.11.0"},
        "log": {"level": "audit-content"},
        "message": "patchPost success",
        "event": {
            "kind": "event",
            "category": ["web"],
            "type": ["access"],
            "action": "patchPost",
            "code": "page_edit",
            "outcome": "success",
            "dataset": "tirreno.audit",
        },
        "user": {"id": "u1", "full_name": "Ann Example", "target": {"id": "u2"}},
        "source": {"address": "192.0.2.7", "ip": "192.0.2.7"},
        "user_agent": {"original": CHROME},
        "http": {
            "request": {
                "id": "7".repeat(32),
                "method": "PUT",
                "referrer": "https://chat.example.com/",
            },
            "response": {"status_code": 200},
        },
        "url": {
            "original": "/api/v4/posts/p1/patch?x=1",
            "path": "/api/v4/posts/p1/patch",
            "query": "x=1",
        },
        "labels": {"post_id": "p1", "identity": "none", "session_id": SESSION, "cluster_id": "c1"},
    });
    assert_eq!(request.json(&formatter), expected);
    let drops: Value = serde_json::from_str(&dropped(&formatter)).unwrap();
    assert_eq!(drops["event"]["start"], "2021-12-04T23:19:32.051Z");
    assert_eq!(drops["labels"]["dropped"], 12);
    assert_eq!(drops["event"]["outcome"], "failure");
}

#[test]
fn ecs_categories_are_allowed_ones() {
    // https://www.elastic.co/guide/en/ecs/8.11/ecs-allowed-values-event-category.html
    let allowed = json!({
        "authentication": ["start", "end", "info"],
        "session": ["start", "end", "info"],
        "iam": ["admin", "change", "creation", "deletion", "group", "info", "user"],
        "configuration": ["access", "change", "creation", "deletion", "info"],
        "web": ["access", "error", "info"],
    });
    let formatter = formatter("ecs", &[]);
    for kind in EventType::ALL {
        for audit in ["", "updateConfig", "revokeSession"] {
            for (method, level) in [("PUT", Level::Api), ("DELETE", Level::Permissions)] {
                let params = vec![(Param::HttpMethod, method.as_bytes())];
                let level = Some(level);
                let request = Request { kind, audit, level, params, ..Request::default() };
                let event = &request.json(&formatter)["event"];
                for category in event["category"].as_array().unwrap() {
                    let types = allowed[category.as_str().unwrap()].as_array().unwrap();
                    let of_event = event["type"].as_array().unwrap();
                    assert!(!of_event.is_empty());
                    assert!(of_event.iter().all(|t| types.contains(t)), "{event}");
                }
            }
        }
    }
}

#[test]
fn how_a_request_ended() {
    use EventType::*;
    for (kind, status, name) in [
        (PageView, 200, "success"),
        (PageView, 101, "success"),
        (AccountLogin, 302, "success"),
        (PageEdit, 399, "success"),
        (PageEdit, 400, "fail"),
        (PageEdit, 503, "fail"),
        (PageEdit, 444, "fail"),
        (PageEdit, 499, "attempt"),
        (PageEdit, 0, "attempt"),
        (AccountLoginFail, 401, "fail"),
        (AccountLoginFail, 302, "fail"),
        (AccountLoginFail, 499, "attempt"),
        (PageError, 200, "fail"),
    ] {
        let json = Request { kind, status, ..Request::default() }.json(&formatter("json", &[]));
        assert_eq!(json["status"], name, "{kind:?} {status}");
        assert_eq!(json.get("code").is_some(), status > 0);
        let record = Request { kind, status, ..Request::default() };
        let record = record.json(&formatter("mattermost", &[]));
        assert_eq!(record.get("code").is_some(), name == "fail", "{kind:?} {status}");
    }
    // `tirreno_param httpCode` overrides the status.
    let given =
        Request { params: vec![(Param::HttpCode, b"403")], status: 0, ..Request::default() };
    assert_eq!(given.json(&formatter("json", &[]))["code"], 403);
}

#[test]
fn posts_are_pinned() {
    let pinned = |path: &str, status| {
        let request = Request {
            status,
            params: vec![(Param::Url, path.as_bytes())],
            segments: vec![("post_id", b"p1")],
            ..Request::default()
        };
        let record = request.json(&formatter("mattermost", &[]));
        assert_eq!(record["post"]["id"], "p1");
        let flat = request.json(&formatter("json", &[]));
        assert_eq!(flat.get("pinned"), record["post"].get("pinned"));
        record["post"].get("pinned").and_then(Value::as_bool)
    };
    assert_eq!(pinned("/api/v4/posts/p1/pin", 200), Some(true));
    assert_eq!(pinned("/api/v4/posts/p1/unpin/?x=/pin", 200), Some(false));
    assert_eq!(pinned("/api/v4/posts/p1/pin", 403), None);
    assert_eq!(pinned("/api/v4/posts/p1", 200), None);
    let other = Request { params: vec![(Param::Url, b"/a/pin")], ..Request::default() };
    assert!(!other.written(&formatter("json", &[])).contains("pinned"));
}

#[test]
fn the_path_begins_behind_the_host() {
    for (url, path) in [
        ("/a/b?x=/c", Some("/a/b")),
        ("//a/b", Some("//a/b")),
        ("https://example.com/a#/b", Some("/a")),
        // `tirreno_param url $host$request_uri`.
        ("example.com/a/b?x", Some("/a/b")),
        ("[2001:db8::1]:8080/a", Some("/a")),
        ("example.com?x=/a", None),
        ("*", None),
    ] {
        let request = Request { params: vec![(Param::Url, url.as_bytes())], ..Request::default() };
        let json = request.json(&formatter("json", &[]));
        assert_eq!(json.get("api_path").and_then(Value::as_str), path, "{url}");
        let ecs = request.json(&formatter("ecs", &[]));
        assert_eq!(ecs["url"].get("path").and_then(Value::as_str), path, "{url}");
    }
}

#[test]
fn segments_do_not_take_the_place_of_fields() {
    let segments: Vec<(&str, &[u8])> = vec![
        ("user_id", b"u2"),
        ("status", b"success"),
        ("target_status", b"x"),
        ("timestamp", b"0"),
        ("dropped", b"9"),
        ("file_id", b"f1"),
    ];
    let params = vec![(Param::UserName, &b"u1"[..])];
    let request = Request { status: 500, params, segments, ..Request::default() };
    for (name, time) in
        [("json", "2021-12-04T23:19:32.051Z"), ("mattermost", "2021-12-04 23:19:32.051 Z")]
    {
        let text = request.written(&formatter(name, &[]));
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["timestamp"], time);
        assert_eq!(json["status"], "fail");
        assert_eq!(json["user_id"], "u1");
        assert_eq!(json["target_status"], "success");
        assert_eq!(json["target_target_status"], "x");
        assert_eq!(json["target_dropped"], "9");
        assert_eq!(json["file_id"], "f1");
        assert_eq!(text.matches("\"status\":").count(), 1);
    }
    assert_eq!(request.json(&formatter("json", &[]))["target_user_id"], "u2");
    let v7 = request.json(&formatter("mattermost_v7", &[]));
    assert_eq!(v7["event"]["parameters"]["status"], "success");
}

#[test]
fn a_rule_adds_fields() {
    let mut request = patch();
    request.segments = vec![("user_id", b"u2"), ("file_id", b"f1")];
    request.claimed = "u9";
    request.fields = vec![
        ("user.roles", b"system_admin"),
        ("user.id", b"kept"),
        ("patch.name", b"ann"),
        ("device_id", b"d1"),
        ("status", b"mine"),
        ("err", b"api.error"),
    ];
    let legacy = request.json(&formatter("mattermost", &[]));
    assert_eq!(legacy["user"], json!({"id": "u2", "roles": "system_admin"}));
    assert_eq!(legacy["patch"], json!({"name": "ann"}));
    assert_eq!(legacy["file"], json!({"id": "f1"}));
    assert_eq!((&legacy["device_id"], &legacy["err"]), (&json!("d1"), &json!("api.error")));
    assert_eq!((&legacy["status"], &legacy["target_status"]), (&json!("success"), &json!("mine")));
    assert_eq!(legacy["claimed_user_id"], "u9");
    let v7 = request.json(&formatter("mattermost_v7", &[]));
    assert_eq!(v7["error"]["description"], "api.error");
    assert_eq!(v7["event"]["parameters"]["patch"], json!({"name": "ann"}));
    let flat = request.json(&formatter("json", &[]));
    assert_eq!(
        (&flat["user.roles"], &flat["claimed_user_id"]),
        (&json!("system_admin"), &json!("u9"))
    );
    let ecs = request.json(&formatter("ecs", &[]));
    assert_eq!(ecs["user"]["target"], json!({"id": "u2", "roles": "system_admin"}));
    assert_eq!(
        (&ecs["error"]["code"], &ecs["labels"]["patch_name"]),
        (&json!("api.error"), &json!("ann"))
    );
}

#[test]
fn me_is_who_asks() {
    let target = |params| {
        let segments = vec![("user_id", &b"me"[..])];
        let request = Request { params, segments, ..Request::default() };
        request.json(&formatter("json", &[])).get("target_user_id").cloned()
    };
    assert_eq!(target(vec![(Param::UserName, b"u1")]), Some(json!("u1")));
    assert_eq!(target(vec![]), None);
}

#[test]
fn sessions_are_hashed_with_a_key() {
    let session = |formatter: &Formatter, token| {
        let json = Request { token, ..Request::default() }.json(formatter);
        json["session_id"].as_str().map(str::to_owned)
    };
    let keyed = formatter("json", &[]);
    assert_eq!(session(&keyed, "t0ken").as_deref(), Some(SESSION));
    assert_eq!(session(&keyed, ""), None);
    assert_ne!(session(&keyed, "other"), session(&keyed, "t0ken"));
    // Without a key file, the process makes a key, which is the same for every target.
    let [a, b] =
        ["json", "ecs"].map(|name| Formatter::new(&FormatConfig::parse(name, &[]).unwrap()));
    let of_b = Request { token: "t0ken", ..Request::default() }.json(&b);
    assert_eq!(session(&a, "t0ken").unwrap(), of_b["labels"]["session_id"].as_str().unwrap());
    assert_ne!(session(&a, "t0ken").as_deref(), Some(SESSION));
    let debug = format!("{:?}", FormatConfig::parse("json", &[("hash_key_file", "/k")]).unwrap());
    assert!(!debug.contains("key: ["), "{debug}");
}

#[test]
fn a_given_time_counts_if_it_is_one() {
    for (given, expected) in [
        ("2024-02-29 01:02:03.5", "2024-02-29 01:02:03.500 Z"),
        ("yesterday", "2021-12-04 23:19:32.051 Z"),
        ("+12024-02-29 01:02:03", "2021-12-04 23:19:32.051 Z"),
    ] {
        let params = vec![(Param::EventTime, given.as_bytes())];
        let record = Request { params, ..Request::default() }.json(&formatter("mattermost", &[]));
        assert_eq!(record["timestamp"], expected);
    }
}

#[test]
fn mistakes_say_what_it_must_be() {
    for (name, option, value, error) in [
        ("xml", "", "", "unknown format \"xml\", it must be \"json\", \"plain\", \"gelf\", "),
        ("json", "delim", "|", "unknown option of format \"json\", it must be one of \"dis"),
        ("gelf", "x", "y", "it must be one of \"hostname\", \"cluster_id\", \"hash_key_file\""),
        ("ecs", "disable_level", "on", "it must be one of \"cluster_id\", \"hash_key_file\""),
        ("plain", "disable_stacktrace", "on", "unknown option of format \"plain\""),
        (
            "json",
            "disable_level",
            "yes",
            "invalid value \"yes\" of option \"disable_level\", it must be \"on\" or \"off\"",
        ),
        ("json", "timestamp_format", "2006-01-02", "must be \"rfc3339\" or a strftime format"),
        ("json", "timestamp_format", "%Y %Q", "must be \"rfc3339\" or a strftime format"),
        ("json", "timestamp_format", "", "must be \"rfc3339\" or a strftime format"),
        ("plain", "timestamp_format", "%Y%n", "without line breaks"),
        ("plain", "min_level_len", "-1", "a number from 0 to 200"),
        ("plain", "min_msg_len", "201", "a number from 0 to 200"),
        ("plain", "delim", "", "spaces, tabs or signs"),
        ("plain", "delim", "=", "spaces, tabs or signs"),
        ("plain", "delim", "\n", "invalid value \"\\n\" of option \"delim\""),
        ("plain", "line_end", "|", "a newline at its end"),
        ("gelf", "hostname", "", "a text that is not empty"),
        ("json", "cluster_id", "", "a text that is not empty"),
        ("json", "hostname", "h", "unknown option of format \"json\""),
    ] {
        let message = FormatConfig::parse(name, &[(option, value)]).unwrap_err();
        assert!(message.contains(error), "{message}");
    }
    let message = FormatConfig::parse("json", &[("5ecr3tK3y", "=")]).unwrap_err();
    assert!(!message.contains("5ecr3tK3y"), "{message}");
    let twice = FormatConfig::parse("json", &[("cluster_id", "a"), ("cluster_id", "b")]);
    assert_eq!(twice.unwrap_err(), "duplicate option \"cluster_id\" of format \"json\"");
    let config = FormatConfig::parse("ecs", &[("hash_key_file", "/etc/key")]).unwrap();
    assert_eq!(config.hash_key_file(), Some("/etc/key"));
}

/// Values that try to end a line, a text, a field or a record, or to move the cursor.
fn hostile() -> Vec<Vec<u8>> {
    let mut values: Vec<Vec<u8>> = [
        &b"a\nforged=1"[..],
        b"a\r\nevent=login",
        b"a\" forged=\"1",
        b"a\\\" forged=1 \\",
        b"\",\"forged\":\"1",
        b"\"}\n{\"forged\":\"1\"}",
        b"a forged=1",
        b"a | forged=1",
        b"a||forged=1",
        b"a|",
        b"\0{\"forged\":1}\0",
        b"\x1b[2J\x1b[31mforged\x1b]0;x\x07",
        b"\xc2\x9b31mforged",
        b"\xe2\x80\xa8forged\xe2\x80\xa9\xc2\x85\x0b\x0c\x1c\x1d\x1e",
        b"\xe2\x80\xaedegrof\x7f",
        b"\xff\xfe\xc3\xed\xa0\x80",
        b"",
        b" ",
    ]
    .map(<[u8]>::to_vec)
    .into();
    values.push(b"\n\"\\\0\x1b".repeat(410));
    values.push("é\u{2028}".repeat(410).into_bytes());
    values
}

#[test]
fn hostile_values_stay_values() {
    let params = [
        Param::UserName,
        Param::Url,
        Param::UserAgent,
        Param::HttpReferer,
        Param::HttpMethod,
        Param::HttpCode,
        Param::EventTime,
        Param::IpAddress,
        Param::BrowserLanguage,
        Param::PageTitle,
        Param::Payload,
    ];
    let baseline = Request {
        params: vec![
            (Param::UserName, b"v"),
            (Param::Url, b"/v?q"),
            (Param::UserAgent, b"v"),
            (Param::HttpReferer, b"v"),
            (Param::HttpMethod, b"v"),
            (Param::BrowserLanguage, b"v"),
            (Param::PageTitle, b"v"),
            (Param::Payload, b"v"),
        ],
        segments: vec![("team_id", b"v"), ("rest", b"v")],
        ..Request::default()
    };
    for value in hostile() {
        let request = Request {
            params: params.iter().map(|p| (*p, &value[..])).collect(),
            segments: vec![("team_id", &value), ("rest", &value)],
            ..Request::default()
        };
        for name in ["json", "gelf", "mattermost", "mattermost_v7", "ecs"] {
            let text = request.written(&formatter(name, &[]));
            check_line(&text);
            let keys = |json: Value| -> Vec<_> { paths(&json, String::new()) };
            let known = keys(baseline.json(&formatter(name, &[])));
            let found = keys(serde_json::from_str(&text).unwrap());
            assert!(found.iter().all(|key| known.contains(key)), "{name} {found:?} {known:?}");
        }
        for delim in [" ", " | ", "||", "\t"] {
            let plain = formatter("plain", &[("delim", delim)]);
            let line = request.written(&plain);
            check_line(&line.replace('\t', " "));
            let known = plain_names(&baseline.written(&plain), delim);
            assert!(plain_names(&line, delim).iter().all(|name| known.contains(name)), "{line}");
        }
        let plain = formatter("plain", &[]);
        let bytes = request.bytes();
        let privacy = Privacy::default();
        for (name, value) in
            plain.fields(&privacy.view(Record::parse(&bytes).unwrap()), Length::Whole)
        {
            assert!(!value.contains('\0'), "{name}");
        }
    }
}

/// Fails if the text has a character that ends a line for any reader, or moves a terminal's cursor.
fn check_line(text: &str) {
    let unseen = text.chars().find(|c| is_unseen(*c));
    assert_eq!(unseen, None, "{text}");
    assert!(!text.is_empty());
}

/// The paths of all values in a document.
fn paths(json: &Value, at: String) -> Vec<String> {
    match json {
        Value::Object(map) => {
            map.iter().flat_map(|(key, value)| paths(value, format!("{at}.{key}"))).collect()
        }
        _ => vec![at],
    }
}

/// The names in a line of `plain`, in which values are in quotes unless they are plain words.
fn plain_names(line: &str, delim: &str) -> Vec<String> {
    let (mut names, mut word, mut rest) = (Vec::new(), String::new(), line);
    while let Some(char) = rest.chars().next() {
        if let Some(next) = rest.strip_prefix(delim) {
            names.push(std::mem::take(&mut word));
            rest = next;
        } else if char == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            rest = &rest[end.unwrap_or_else(|| panic!("no end of a quote: {line}")) + 2..];
        } else {
            word.push(char);
            rest = &rest[char.len_utf8()..];
        }
    }
    names.push(word);
    names.iter().filter_map(|word| Some(word.split_once('=')?.0.to_owned())).collect()
}

#[test]
fn a_record_can_be_made_shorter_and_says_so() {
    let long = "\u{20ac}\"".repeat(300);
    let url = format!("/api/v4/posts/p1/patch?{}", "x".repeat(1000));
    let request = Request {
        params: vec![
            (Param::UserName, b"a user whose name is longer than any value may be"),
            (Param::HttpMethod, b"PUT"),
            (Param::Url, url.as_bytes()),
            (Param::UserAgent, long.as_bytes()),
            (Param::HttpReferer, long.as_bytes()),
            (Param::FullName, long.as_bytes()),
        ],
        segments: vec![("post_id", long.as_bytes()), ("truncated", b"x")],
        fields: vec![("user.name", long.as_bytes())],
        claimed: &long,
        token: "t0ken",
        ..patch()
    };
    let (bytes, privacy) = (request.bytes(), Privacy::default());
    let view = privacy.view(Record::parse(&bytes).unwrap());
    for name in ["json", "plain", "gelf", "mattermost", "mattermost_v7", "ecs"] {
        let formatter = formatter(name, &[]);
        let written = |length| {
            let mut out = Vec::new();
            formatter.record(&view, length, &mut out);
            String::from_utf8(out).expect("valid UTF-8")
        };
        let whole = written(Length::Whole);
        assert_eq!(written(Length::Values(5000)), whole);
        let mut before = whole.len();
        for most in [400, 100, 16] {
            let text = written(Length::Values(most));
            assert!(text.len() < before, "{name} {most}");
            before = text.len();
            assert!(text.contains("a user whose name is longer than any value may be"), "{text}");
            assert!(text.contains("truncated") && text.contains(SESSION), "{text}");
            if name != "plain" {
                serde_json::from_str::<Value>(&text).unwrap();
            }
        }
        let bare = written(Length::Bare);
        assert!(bare.len() < 700 && bare.contains("truncated"), "{bare}");
        assert!(bare.contains("a user whose name is longer"), "{bare}");
    }
}
