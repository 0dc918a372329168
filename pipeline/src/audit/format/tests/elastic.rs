//! Runs Elastic's Mattermost integration on the format `mattermost`: the steps of its ingest pipeline that
//! are more than look-ups, for many kinds of requests.

use super::*;

/// The document that the pipeline makes of a line, or the pipeline's error.
fn ingest(line: &str) -> Result<Value, String> {
    let json: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let json = json.as_object().cloned().ok_or("Missing JSON object")?;
    let mut ctx = Document(Map::from_iter([("json".into(), Value::Object(json))]));
    let time = ctx.text("json.timestamp").ok_or("field [timestamp] not present")?;
    ctx.put("@timestamp", date(&time).ok_or(format!("unable to parse date [{time}]"))?.into())?;
    ctx.rename("json.event", "event.action")?;
    ctx.rename("json.err", "error.code")?;
    let outcome = match ctx.text("json.status").as_deref() {
        Some("success") => "success",
        Some("fail") => "failure",
        _ => "unknown",
    };
    ctx.put("event.outcome", outcome.into())?;
    ctx.rename("json.user_id", "user.id")?;
    if ctx.get("user.id").is_none() {
        ctx.rename("json.login_id", "user.id")?;
    }
    ctx.rename("json.ip_address", "source.address")?;
    if let Some(address) =
        ctx.text("source.address").filter(|a| a.parse::<std::net::IpAddr>().is_ok())
    {
        ctx.put("source.ip", address.into())?;
    }
    if let Some(client) = ctx.text("json.client") {
        ctx.put("user_agent.original", client.into())?;
    }
    ctx.rename("json.api_path", "mattermost.audit.api_path")?;
    if let Some(path) = ctx.text("mattermost.audit.api_path") {
        ctx.put("url.path", path.into())?;
    }
    for (from, to) in [
        ("session_id", "mattermost.audit.session.id"),
        ("device_id", "mattermost.audit.device.id"),
        ("cluster_id", "mattermost.audit.cluster.id"),
        ("user.id", "user.target.id"),
        ("user.name", "user.target.name"),
        ("user.roles", "user.target.roles"),
        ("remove_user_id", "user.target.id"),
        ("user_ids", "user.target.id"),
        ("team", "mattermost.audit.team"),
        ("code", "http.response.status_code"),
        ("post", "mattermost.audit.post"),
    ] {
        ctx.rename(&format!("json.{from}"), to)?;
    }
    ctx.rename("mattermost.audit.post.channel_id", "mattermost.audit.post.channel.id")?;
    ctx.rename("json.patch", "mattermost.audit.patch")?;
    ctx.rename("json.channel", "mattermost.audit.channel")?;
    let action = ctx.text("event.action");
    let (category, kind): (&[_], &[_]) = match action.as_deref() {
        Some("login") => (&["authentication", "session"], &["start"]),
        Some("Logout") => (&["authentication", "session"], &["end"]),
        Some("revokeAllSessionsForUser") => (&["session"], &["end"]),
        Some("updateConfig") => (&["configuration"], &["change"]),
        Some("updatePassword" | "updatePreferences" | "updateUserActive" | "patchUser") => {
            (&["iam"], &["user", "change"])
        }
        Some("createPost" | "createChannel") => (&["configuration"], &["creation"]),
        Some("deleteChannel") => (&["configuration"], &["deletion"]),
        Some("patchChannel" | "removeChannelMember") => (&["configuration"], &["change"]),
        Some("createTeam") => (&["iam"], &["group", "creation"]),
        Some("deleteTeam") => (&["iam"], &["group", "deletion"]),
        Some("patchTeam" | "addTeamMembers" | "removeTeamMember") => {
            (&["iam"], &["group", "change"])
        }
        _ => (&["configuration"], &["info"]),
    };
    ctx.put("event.kind", "event".into())?;
    ctx.put("event.category", json!(category))?;
    ctx.put("event.type", json!(kind))?;
    ctx.0.remove("json");
    Ok(Value::Object(ctx.0))
}

/// Parses `yyyy-MM-dd HH:mm:ss.SSS 'Z'` as a time in UTC.
fn date(text: &str) -> Option<String> {
    let pattern = "dddd-dd-dd dd:dd:dd.ddd Z";
    let fits = |(c, p): (char, char)| if p == 'd' { c.is_ascii_digit() } else { c == p };
    let whole = text.len() == pattern.len() && text.chars().zip(pattern.chars()).all(fits);
    whole.then(|| text.replacen(' ', "T", 1).replace(" Z", "Z"))
}

/// A document inside the pipeline, with dotted field names.
struct Document(Map<String, Value>);

impl Document {
    fn get(&self, field: &str) -> Option<&Value> {
        let (parents, last) = field.rsplit_once('.').unwrap_or(("", field));
        let mut map = &self.0;
        for parent in parents.split('.').filter(|p| !p.is_empty()) {
            map = map.get(parent)?.as_object()?;
        }
        map.get(last)
    }

    fn text(&self, field: &str) -> Option<String> {
        self.get(field)?.as_str().map(str::to_owned)
    }

    fn map(&mut self, field: &str) -> Result<(&mut Map<String, Value>, String), String> {
        let (parents, last) = field.rsplit_once('.').unwrap_or(("", field));
        let mut map = &mut self.0;
        for parent in parents.split('.').filter(|p| !p.is_empty()) {
            let next = map.entry(parent).or_insert_with(|| json!({}));
            map = next
                .as_object_mut()
                .ok_or(format!("cannot set [{field}], [{parent}] is no object"))?;
        }
        Ok((map, last.to_owned()))
    }

    fn put(&mut self, field: &str, value: Value) -> Result<(), String> {
        let (map, last) = self.map(field)?;
        map.insert(last, value);
        Ok(())
    }

    /// Like the pipeline's `rename` with `ignore_missing`: fails if the target exists.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), String> {
        if self.get(from).is_none() {
            return Ok(());
        }
        if self.get(to).is_some() {
            return Err(format!("field [{to}] already exists"));
        }
        let (map, last) = self.map(from)?;
        let value = map.remove(&last).unwrap_or_default();
        self.put(to, value)
    }
}

/// Method, path, status, event, type, user, the rule's pattern, and the expected document.
type Case = (
    &'static str,
    &'static str,
    u16,
    &'static str,
    EventType,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const A: &str = "/api/v4/";

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    use EventType::*;
    vec![
        ("POST", "users/login", 200, "login", AccountLogin, "u1", "", &[("event.category", r#"["authentication","session"]"#), ("event.type", r#"["start"]"#), ("event.outcome", "success")]),
        ("POST", "users/login", 401, "login", AccountLoginFail, "ann@example.com", "", &[("event.outcome", "failure"), ("http.response.status_code", "401"), ("event.type", r#"["start"]"#)]),
        ("POST", "users/login", 429, "login", AccountLoginFail, "", "", &[("event.outcome", "failure"), ("user.id", "")]),
        ("POST", "users/login/cws", 302, "login", AccountLoginFail, "", "", &[("event.outcome", "failure"), ("http.response.status_code", "302")]),
        ("POST", "users/login/desktop_token", 200, "loginWithDesktopToken", AccountLogin, "u1", "", &[("event.category", r#"["configuration"]"#)]),
        ("POST", "users/logout", 200, "Logout", AccountLogout, "u1", "", &[("event.type", r#"["end"]"#)]),
        ("POST", "users", 201, "createUser", AccountRegistration, "", "", &[("event.outcome", "success")]),
        ("PUT", "users/u2/password", 200, "updatePassword", AccountPasswordChange, "u1", "users/{user_id}/password", &[("user.target.id", "u2"), ("event.category", r#"["iam"]"#), ("event.type", r#"["user","change"]"#)]),
        ("POST", "users/password/reset", 200, "resetPassword", AccountPasswordChange, "", "", &[("event.action", "resetPassword")]),
        ("PUT", "users/me/patch", 200, "patchUser", AccountEdit, "u1", "users/{user_id}/patch", &[("user.target.id", "u1"), ("event.category", r#"["iam"]"#)]),
        ("PUT", "users/u2", 200, "updateUser", AccountEdit, "u1", "users/{user_id}", &[("user.target.id", "u2")]),
        ("PUT", "users/u2/active", 403, "updateUserActive", AccountEdit, "u1", "users/{user_id}/active", &[("user.target.id", "u2"), ("event.outcome", "failure"), ("http.response.status_code", "403")]),
        ("PUT", "users/u2/roles", 200, "updateUserRoles", AccountEdit, "u1", "users/{user_id}/roles", &[("user.target.id", "u2")]),
        ("POST", "users/u2/sessions/revoke", 200, "revokeSession", AccountEdit, "u1", "users/{user_id}/sessions/revoke", &[("user.target.id", "u2")]),
        ("POST", "users/u2/sessions/revoke/all", 200, "revokeAllSessionsForUser", AccountEdit, "u1", "users/{user_id}/sessions/revoke/all", &[("event.category", r#"["session"]"#), ("event.type", r#"["end"]"#)]),
        ("POST", "posts", 201, "createPost", PageEdit, "u1", "", &[("event.category", r#"["configuration"]"#), ("event.type", r#"["creation"]"#)]),
        ("PUT", "posts/p1", 200, "updatePost", PageEdit, "u1", "posts/{post_id}", &[("mattermost.audit.post", r#"{"id":"p1"}"#)]),
        ("PUT", "posts/p1/patch", 499, "patchPost", PageEdit, "u1", "posts/{post_id}/patch", &[("event.outcome", "unknown"), ("mattermost.audit.post", r#"{"id":"p1"}"#)]),
        ("DELETE", "posts/p1", 502, "deletePost", PageDelete, "u1", "posts/{post_id}", &[("event.outcome", "failure"), ("http.response.status_code", "502")]),
        ("POST", "posts/p1/pin", 200, "saveIsPinnedPost", PageEdit, "u1", "posts/{post_id}/pin", &[("mattermost.audit.post", r#"{"id":"p1","pinned":true}"#)]),
        ("POST", "posts/p1/unpin", 200, "saveIsPinnedPost", PageEdit, "u1", "posts/{post_id}/unpin", &[("mattermost.audit.post", r#"{"id":"p1","pinned":false}"#)]),
        ("POST", "channels", 201, "createChannel", PageEdit, "u1", "", &[("event.type", r#"["creation"]"#)]),
        ("PUT", "channels/c1/patch", 200, "patchChannel", PageEdit, "u1", "channels/{channel_id}/patch", &[("mattermost.audit.channel", r#"{"id":"c1"}"#), ("event.type", r#"["change"]"#)]),
        ("DELETE", "channels/c1", 200, "deleteChannel", PageDelete, "u1", "channels/{channel_id}", &[("mattermost.audit.channel", r#"{"id":"c1"}"#), ("event.type", r#"["deletion"]"#)]),
        ("DELETE", "channels/c1/members/u2", 200, "removeChannelMember", PageDelete, "u1", "channels/{channel_id}/members/{user_id}", &[("mattermost.audit.channel", r#"{"id":"c1"}"#), ("user.target.id", "u2")]),
        ("POST", "teams", 201, "createTeam", PageEdit, "u1", "", &[("event.category", r#"["iam"]"#), ("event.type", r#"["group","creation"]"#)]),
        ("PUT", "teams/t1/patch", 200, "patchTeam", PageEdit, "u1", "teams/{team_id}/patch", &[("mattermost.audit.team", r#"{"id":"t1"}"#), ("event.type", r#"["group","change"]"#)]),
        ("DELETE", "teams/t1", 200, "deleteTeam", PageDelete, "u1", "teams/{team_id}", &[("mattermost.audit.team", r#"{"id":"t1"}"#), ("event.type", r#"["group","deletion"]"#)]),
        ("POST", "teams/t1/members", 201, "addTeamMember", PageEdit, "u1", "teams/{team_id}/members", &[("mattermost.audit.team", r#"{"id":"t1"}"#)]),
        ("POST", "teams/t1/members/batch", 201, "addTeamMembers", PageEdit, "u1", "teams/{team_id}/members/batch", &[("event.type", r#"["group","change"]"#)]),
        ("DELETE", "teams/t1/members/u2", 200, "removeTeamMember", PageDelete, "u1", "teams/{team_id}/members/{user_id}", &[("user.target.id", "u2"), ("mattermost.audit.team", r#"{"id":"t1"}"#), ("event.type", r#"["group","change"]"#)]),
        ("PUT", "config", 200, "updateConfig", PageEdit, "u1", "", &[("event.category", r#"["configuration"]"#), ("event.type", r#"["change"]"#)]),
        ("PUT", "config/patch", 0, "patchConfig", PageEdit, "u1", "", &[("event.outcome", "unknown")]),
        ("POST", "files", 201, "uploadFileStream", PageEdit, "u1", "", &[("event.outcome", "success")]),
        ("GET", "files/f1", 200, "getFile", PageView, "u1", "files/{file_id}", &[("event.action", "getFile")]),
        ("GET", "websocket", 101, "", PageView, "u1", "", &[("event.action", "page_view"), ("event.outcome", "success")]),
        ("POST", "posts/search", 200, "searchPosts", PageSearch, "u1", "", &[("event.outcome", "success")]),
        ("PUT", "%0a/caf\u{e9}/\"x\"", 200, "", PageEdit, "\",\"code\":1,\"x\":\"", "", &[("event.action", "page_edit")]),
    ]
}

#[test]
fn every_field_comes_out_as_listed() {
    let formatter = formatter("mattermost", &[("cluster_id", "c1")]);
    assert!(cases().len() >= 30);
    for (method, path, status, audit, kind, user, pattern, expected) in cases() {
        let url = format!("{A}{path}?token=***");
        let segments = pattern.split('/').zip(path.split('/')).filter_map(|(name, value)| {
            Some((name.strip_prefix('{')?.strip_suffix('}')?, value.as_bytes()))
        });
        let line = Request {
            kind,
            audit,
            status,
            params: vec![
                (Param::UserName, user.as_bytes()),
                (Param::HttpMethod, method.as_bytes()),
                (Param::Url, url.as_bytes()),
                (Param::UserAgent, CHROME.as_bytes()),
            ],
            segments: segments.collect(),
            token: "t0ken",
            ..Request::default()
        };
        let line = line.written(&formatter);
        let document = ingest(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let document = Document(document.as_object().unwrap().clone());
        let api_path = format!("{A}{path}");
        let common = [
            ("@timestamp", "2021-12-04T23:19:32.051Z"),
            ("event.kind", "event"),
            ("source.address", "192.0.2.7"),
            ("source.ip", "192.0.2.7"),
            ("user.id", user),
            ("user_agent.original", CHROME),
            ("mattermost.audit.session.id", SESSION),
            ("mattermost.audit.cluster.id", "c1"),
            ("mattermost.audit.api_path", &api_path),
            ("url.path", &api_path),
        ];
        for (field, value) in common.iter().chain(expected) {
            let found = document.get(field).unwrap_or(&Value::Null);
            let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
            assert_eq!(found, *value, "{field}: {line}");
        }
        if !audit.is_empty() {
            assert_eq!(document.text("event.action").as_deref(), Some(audit));
        }
        let code = document.get("http.response.status_code").is_some();
        assert_eq!(code, document.text("event.outcome").unwrap() == "failure", "{line}");
        if !pattern.contains("user_id") {
            assert_eq!(document.get("user.target.id"), None, "{line}");
        }
    }
}

#[test]
fn a_malformed_neighbour_fails_alone() {
    let formatter = formatter("mattermost", &[]);
    let mut file = Vec::new();
    let bytes = patch().bytes();
    let privacy = Privacy::default();
    let view = privacy.view(Record::parse(&bytes).unwrap());
    formatter.record(&view, Length::Whole, &mut file);
    file.extend_from_slice(formatter.terminator());
    file.extend_from_slice(
        b"{\"timestamp\":\"2021-12-04T23:19:32Z\",\"event\":\"login\"}\n[1]\n{\"time\n",
    );
    formatter.drops(&DROPS, &mut file);
    file.extend_from_slice(formatter.terminator());
    formatter.record(&view, Length::Whole, &mut file);
    file.extend_from_slice(formatter.terminator());
    let file = String::from_utf8(file).unwrap();
    let read: Vec<_> = file.lines().map(|line| ingest(line).is_ok()).collect();
    assert_eq!(read, [true, false, false, false, true, true]);
}
