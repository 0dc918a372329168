//! The presets: which requests of an application are events, and whose.
//!
//! Each test has a table of requests. nginx passes them to an application that answers what the table
//! says; what the sensor has stored at the end is compared line by line.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tirreno_tests::backend::Backend;
use tirreno_tests::client::{self, Connection, RequestHeaders, WebSocket};
use tirreno_tests::nginx::{Builder, Nginx, nginx_is_before};
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(20);

/// Marks what must stay where it is.
const SECRET: &str = "5ecret";

/// The user of the request that comes after everything else.
const LAST: &str = "last";

/// Passes requests on. What the application is to answer comes in a header: in a query argument, which
/// is how the backend wants it, it would be in the event's URL.
const LOCATION: &str = "location / {
    proxy_http_version 1.1;
    proxy_set_header Upgrade    $http_upgrade;
    proxy_set_header Connection $http_connection;
    proxy_pass http://%BACKEND%/?$http_x_script;
}";

/// What there is in an application's table.
struct App {
    /// Clients: a name in the table, and their headers.
    clients: &'static [(&'static str, RequestHeaders<'static>)],
    /// What an answer has besides its status: a name in the table, and what the backend is told.
    answers: &'static [(&'static str, &'static str)],
    /// A request of the user [`LAST`] that is an event.
    last: &'static str,
    /// What each request with a body has.
    body: &'static str,
}

/// nginx with presets, an application, and the sensor that gets the events.
struct Site {
    app: &'static App,
    sensor: Sensor,
    nginx: Nginx,
    _backend: Backend,
}

/// A line of a table.
struct Line<'t> {
    text: &'t str,
    method: &'t str,
    target: &'t str,
    status: u16,
    script: String,
    client: RequestHeaders<'static>,
    /// The event's type and user.
    event: Option<(&'t str, &'t str)>,
}

/// Whether that stands for an account that is not known: `unknown-` and 16 hexadecimal digits.
fn is_alias(user: &str) -> bool {
    let digits = user.strip_prefix("unknown-");
    digits.is_some_and(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn presets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf/presets")
}

/// The preset of that name, as text.
fn preset(name: &str) -> String {
    fs::read_to_string(presets().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

impl Site {
    /// With `server` in the server at `%PORT%`, before the location that passes requests on; `more`
    /// adds to the rest.
    fn start(app: &'static App, server: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let (sensor, backend) = (Sensor::start(SensorOptions::default()), Backend::start());
        let builder =
            Nginx::builder().sensor(&sensor.url()).var("BACKEND", &backend.address()).http(
                "tirreno_target {
                     url %SENSOR%; api_key test-key; interval 20ms; spool %PREFIX%/spool;
                     login_fail_delay 0;
                 }
                 keepalive_requests 100000;",
            );
        let builder = more(builder.server(&format!("{server} {LOCATION}")));
        Self { app, sensor, nginx: builder.start(), _backend: backend }
    }

    /// Sends the requests of a table to the port, with `prefix` before their paths, and compares.
    /// Returns how many they were.
    #[track_caller]
    fn check(&self, port: u16, prefix: &str, table: &str) -> usize {
        self.check_last(port, prefix, prefix, table)
    }

    /// Sends the last request, with `prefix` before its path, and waits for its event: one worker
    /// captures and one connection delivers, in the order of capture.
    fn finish(&self, wire: &mut Wire, prefix: &str) {
        let last = self.app.read(self.app.last);
        wire.send(self.app, &last, &format!("{prefix}{}", last.target));
        wait_until(SOON, "the last event", || {
            self.sensor.stored().iter().any(|event| event.user_name == LAST)
        });
    }

    /// As [`Site::check`], with another prefix for the last request.
    #[track_caller]
    fn check_last(&self, port: u16, prefix: &str, last_prefix: &str, table: &str) -> usize {
        let lines: Vec<_> = lines(table).map(|line| self.app.read(line)).collect();
        let mut wire = Wire { port, connection: None };
        for (n, line) in lines.iter().enumerate() {
            wire.send(self.app, line, &with_number(prefix, line.target, n));
        }
        self.finish(&mut wire, last_prefix);
        assert!(self.sensor.lost().is_empty(), "{:?}", self.sensor.lost());
        let mut found: BTreeMap<usize, (String, String)> = BTreeMap::new();
        for event in self.sensor.stored().iter().filter(|event| event.user_name != LAST) {
            let number = event.url.rsplit_once("n=").and_then(|(_, n)| n.parse().ok());
            let number = number.unwrap_or_else(|| panic!("no number in {}", event.to_line()));
            // A search has no payload here; the sensor takes it.
            let is_harmless = |flag: &String| flag == "payload: missing";
            assert!(event.flagged.iter().all(is_harmless), "{}", event.to_line());
            let what = (event.event_type.clone(), event.user_name.clone());
            assert!(found.insert(number, what).is_none(), "twice: {}", event.to_line());
        }
        let mut wrong = String::new();
        for (n, line) in lines.iter().enumerate() {
            let expected = line.event.map(|(kind, user)| match user {
                "-" => (kind, "N/A"),
                _ => (kind, user),
            });
            // What stands for an unknown account is another in each run.
            let user = |user| if is_alias(user) { "unknown" } else { user };
            let stored = found.get(&n).map(|(kind, name)| (&**kind, user(&**name)));
            if stored != expected {
                wrong += &format!("\n{}: {stored:?}", line.text);
            }
        }
        assert!(wrong.is_empty(), "under {prefix:?}:{wrong}");
        lines.len()
    }

    /// What may be looked at for secrets, each with its name: all that the sensor received, and nginx's
    /// files and shared memory.
    fn remains(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for request in self.sensor.requests() {
            let head = request
                .headers
                .iter()
                .flat_map(|(name, value)| [name.as_bytes(), b": ", value, b"\n"].concat());
            let bytes =
                [request.path.as_bytes(), b"\n", &*head.collect::<Vec<u8>>(), &request.body];
            all.push(("the sensor".to_owned(), bytes.concat()));
        }
        let mut directories = vec![self.nginx.prefix().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("nginx's directory") {
                let path = entry.expect("nginx's directory").path();
                match path.is_dir() {
                    true => directories.push(path),
                    // A journal may be gone meanwhile.
                    false => all.extend(
                        fs::read(&path).ok().map(|bytes| (path.display().to_string(), bytes)),
                    ),
                }
            }
        }
        // The rings.
        all.extend([("shared memory".to_owned(), self.nginx.shared_memory())]);
        all
    }
}

impl App {
    /// Reads `METHOD TARGET STATUS[+ANSWER…] CLIENT TYPE USER`. No event: `- -`.
    fn read<'t>(&self, text: &'t str) -> Line<'t> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [method, target, answer, client, kind, user] = *words else {
            panic!("{} words in {text:?}", words.len());
        };
        let mut answers = answer.split('+');
        let status: u16 = answers.next().and_then(|s| s.parse().ok()).expect(text);
        let mut script = format!("status={status}");
        for name in answers {
            let answer = self.answers.iter().find(|(n, _)| *n == name);
            script += &format!("&{}", answer.unwrap_or_else(|| panic!("{name} in {text:?}")).1);
        }
        let client = self.clients.iter().find(|(name, _)| *name == client);
        let client = client.unwrap_or_else(|| panic!("the client in {text:?}")).1;
        let event = (kind != "-").then_some((kind, user));
        Line { text, method, target, status, script, client, event }
    }
}

/// A connection to nginx, opened again where it ends.
struct Wire {
    port: u16,
    connection: Option<Connection>,
}

impl Wire {
    fn send(&mut self, app: &App, line: &Line<'_>, target: &str) {
        let mut headers = vec![("X-Script", &*line.script)];
        headers.extend_from_slice(line.client);
        if line.status == 101 {
            let socket = WebSocket::open(self.port, target, &headers);
            assert_eq!(socket.expect(line.text).echo("hello").expect(line.text), "hello");
            return;
        }
        let connection = self.connection.get_or_insert_with(|| {
            Connection::open(SocketAddr::from(([127, 0, 0, 1], self.port))).expect("nginx listens")
        });
        let body = if matches!(line.method, "POST" | "PUT") { app.body } else { "" };
        if !body.is_empty() && !body.starts_with('{') {
            headers.push(("Content-Type", "application/x-www-form-urlencoded"));
        }
        let answer = connection.request(line.method, target, &headers, body.as_bytes());
        assert_eq!(answer.expect(line.text).status, line.status, "{}", line.text);
        if connection.ended() {
            self.connection = None;
        }
    }
}

/// The lines of a table that are no comments.
fn lines(table: &str) -> impl Iterator<Item = &str> {
    table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The target with what tells its event from others.
fn with_number(prefix: &str, target: &str, n: usize) -> String {
    let mark = if target.contains('?') { '&' } else { '?' };
    format!("{prefix}{target}{mark}n={n}")
}

/// The headers that every client of Mattermost sends, and `own`.
macro_rules! mattermost_client {
    ($($own:expr),*) => {
        &[
            ("Referer", "https://u:5ecret@chat.example.com/x?token=5ecret&code=5ecret#token=5ecret"),
            $($own),*
        ]
    };
}

const XHR: (&str, &str) = ("X-Requested-With", "XMLHttpRequest");

const MATTERMOST: App = App {
    clients: &[
        // The web page and the desktop application.
        (
            "ann",
            mattermost_client![
                XHR,
                ("Cookie", "MMAUTHTOKEN=5ecret; MMUSERID=ann; MMCSRF=5ecret"),
                ("X-CSRF-Token", "5ecret")
            ],
        ),
        // Somebody was signed in here before.
        ("old", mattermost_client![XHR, ("Cookie", "MMUSERID=old; MMAUTHTOKEN=5ecret")]),
        // Signed out: nobody.
        ("nobody", mattermost_client![XHR]),
        // A mobile application, a bot, mmctl.
        ("token", mattermost_client![("Authorization", "Bearer 5ecret")]),
        // A mobile application that sends the cookies back.
        (
            "phone",
            mattermost_client![("Authorization", "BEARER 5ecret"), ("Cookie", "MMUSERID=ann")],
        ),
        // Names a user and has no session.
        ("forged", mattermost_client![("Cookie", "MMUSERID=victim; MMAUTHTOKEN=forged5ecret")]),
        ("last", &[("Cookie", "MMUSERID=last")]),
    ],
    answers: &[
        (
            "cookies",
            "header=Token:5ecret&set_cookie=MMAUTHTOKEN%3D5ecret&set_cookie=MMUSERID%3Dnew\
             &set_cookie=MMCSRF%3D5ecret&body=5ecret",
        ),
        ("token", "header=Token:5ecret&body=5ecret"),
        (
            "expired",
            "set_cookie=MMUSERID%3Dold;%20Max-Age%3D0&set_cookie=MMAUTHTOKEN%3D;%20Max-Age%3D0",
        ),
    ],
    last: "POST /api/v4/posts 201 last page_edit last",
    body: r#"{"login_id": "ann", "password": "5ecret", "token": "5ecret"}"#,
};

/// Requests, what Mattermost answers, who asks, and the event with its user. Of a page that is refused,
/// Tirreno makes a `page_error`.
const MATTERMOST_TABLE: &str = "
# Signing in with a password: the response says whose it is, whatever the cookie. Whose account the body
# names is learned from that.
POST /api/v4/users/login                  200+cookies nobody account_login new
POST /api/v4/users/login                  200+cookies old    account_login new
POST /api/v4/users/login                  200+cookies ann    account_login new
POST /api/v4/users/login                  200+token   nobody account_login new
POST /api/v4/users/login                  200+token   token  account_login new
POST /api/v4/users/login                  200+token   old    account_login new
POST /api/v4/users/login                  400         nobody account_login_fail new
POST /api/v4/users/login                  401         nobody account_login_fail new
POST /api/v4/users/login                  401         old    account_login_fail new
POST /api/v4/users/login                  401         forged account_login_fail new
POST /api/v4/users/login                  401         token  account_login_fail new
POST /api/v4/users/login                  429         nobody account_login_fail new
POST /api/v4/users/login                  429         old    account_login_fail new
POST /api/v4/users/login                  500         old    - -
POST /api/v4/users/login                  503         nobody - -
POST /api/v4/users/login?token=5ecret     401         old    account_login_fail new
POST /api/v4/users/login/                 200+cookies old    account_login new
GET  /api/v4/users/login                  405         ann    - -
POST /api/v4/users/login/type             200         ann    - -
# Other ways in.
POST /api/v4/users/login/cws              302+cookies nobody account_login new
POST /api/v4/users/login/cws              302+token   old    account_login -
POST /api/v4/users/login/cws              302         nobody account_login_fail -
POST /api/v4/users/login/cws              302         old    account_login_fail -
POST /api/v4/users/login/cws              302+expired old    account_login_fail -
POST /api/v4/users/login/cws              400         nobody account_login_fail -
POST /api/v4/users/login/desktop_token    200+cookies nobody account_login new
POST /api/v4/users/login/desktop_token    200+cookies old    account_login new
POST /api/v4/users/login/desktop_token    401         old    account_login_fail -
POST /api/v4/users/login/desktop_token?client_token=5ecret&server_token=5ecret 400 nobody account_login_fail -
POST /api/v4/users/login/sso/code-exchange 200+token  nobody account_login -
POST /api/v4/users/login/sso/code-exchange 200+cookies old   account_login new
POST /api/v4/users/login/sso/code-exchange 400        old    account_login_fail -
# Single sign-on.
GET  /oauth/gitlab/complete?code=5ecret&state=5ecret  302+cookies nobody account_login new
GET  /oauth/gitlab/complete?code=5ecret&state=5ecret  302+cookies old    account_login new
GET  /oauth/google/complete?code=5ecret&state=5ecret  307+cookies ann    account_login new
GET  /oauth/openid/complete?code=5ecret&state=5ecret  200+token   nobody account_login -
GET  /oauth/openid/complete?code=5ecret&state=5ecret  200+token   old    account_login -
GET  /oauth/office365/complete?code=5ecret&state=5ecret 302       old    - -
GET  /oauth/office365/complete?error=access_denied    307         nobody - -
GET  /oauth/office365/complete                        302+expired old    - -
GET  /signup/gitlab/complete?code=5ecret&state=5ecret 302+cookies nobody account_login new
GET  /signup/gitlab/complete?code=5ecret              302         nobody - -
GET  /login/gitlab/complete?code=5ecret&state=5ecret  302+cookies nobody account_login new
GET  /login/gitlab/complete?code=5ecret               200+token   nobody account_login -
GET  /login/gitlab/complete?code=5ecret               302         ann    - -
GET  /login/gitlab/mobile                             302+cookies ann    - -
POST /oauth/gitlab/complete                           302+cookies nobody - -
POST /login/sso/saml?RelayState=5ecret                302+cookies nobody account_login new
POST /login/sso/saml                                  302+cookies old    account_login new
POST /login/sso/saml                                  200+token   nobody account_login -
POST /login/sso/saml?SAMLResponse=5ecret              302         old    - -
GET  /login/sso/saml                                  302         nobody - -
POST /oauth/intune                                    200+token   nobody account_login -
POST /oauth/intune                                    200+cookies old    account_login new
POST /oauth/intune                                    401         old    - -
POST /oauth/access_token?code=5ecret                  200         nobody - -
GET  /oauth/authorize?state=5ecret                    200         ann    - -
# Signing out.
POST /api/v4/users/logout                             200         ann    account_logout ann
POST /api/v4/users/logout                             200         phone  account_logout ann
POST /api/v4/users/logout                             200         token  - -
POST /api/v4/users/logout                             500         ann    - -
# Accounts.
POST /api/v4/users                                    201         ann    account_registration ann
POST /api/v4/users?t=5ecret&d=5ecret                  201         nobody account_registration -
POST /api/v4/users?iid=5ecret&sbr=x                   201         nobody account_registration -
POST /api/v4/users                                    201         token  account_registration -
POST /api/v4/users                                    400         nobody - -
POST /api/v4/users                                    401         forged - -
PUT  /api/v4/users/ann/password                       200         ann    account_password_change ann
PUT  /api/v4/users/me/password                        200         phone  account_password_change ann
PUT  /api/v4/users/ann/password                       400         ann    - -
PUT  /api/v4/users/victim/password                    401         forged - -
POST /api/v4/users/password/reset?token=5ecret        200         nobody account_password_change -
POST /api/v4/users/password/reset                     200         ann    account_password_change ann
POST /api/v4/users/password/reset                     400         nobody - -
PUT  /api/v4/users/ann                                200         ann    account_edit ann
PUT  /api/v4/users/ann                                403         ann    - -
PUT  /api/v4/users/ann                                401         forged - -
PUT  /api/v4/users/ann                                200         token  - -
PUT  /api/v4/users/ann/patch                          200         ann    account_edit ann
PUT  /api/v4/users/bob/roles                          200         ann    account_edit ann
PUT  /api/v4/users/bob/active                         200         ann    account_edit ann
PUT  /api/v4/users/ann/mfa                            200         ann    account_edit ann
PUT  /api/v4/users/bob/auth                           200         ann    account_edit ann
POST /api/v4/users/ann/mfa/generate                   200         ann    account_edit ann
POST /api/v4/users/ann/sessions/revoke                200         ann    account_edit ann
POST /api/v4/users/ann/sessions/revoke/all            200         ann    account_edit ann
POST /api/v4/users/sessions/revoke/all                200         ann    account_edit ann
POST /api/v4/users/ann/tokens                         200         ann    account_edit ann
POST /api/v4/users/tokens/revoke                      200         ann    account_edit ann
POST /api/v4/users/tokens/enable                      200         ann    account_edit ann
POST /api/v4/users/tokens/disable                     200         ann    account_edit ann
POST /api/v4/users/bob/promote                        200         ann    account_edit ann
POST /api/v4/users/bob/demote                         200         ann    account_edit ann
POST /api/v4/users/bob/convert_to_bot                 200         ann    account_edit ann
DELETE /api/v4/users/bob                              200         ann    account_edit ann
POST /api/v4/users/login/switch                       200         ann    account_edit ann
POST /api/v4/users/login/switch                       200         nobody account_edit -
POST /api/v4/users/password/reset/send                200         nobody account_edit -
POST /api/v4/users/email/verify?token=5ecret          200         nobody account_edit -
POST /api/v4/users/email/verify                       400         nobody - -
GET  /api/v4/users/ann                                200         ann    - -
GET  /api/v4/users/ann/tokens                         200         ann    - -
# Members and roles.
PUT  /api/v4/teams/t1/members/bob/roles               200         ann    page_edit ann
PUT  /api/v4/teams/t1/members/bob/schemeRoles         200         ann    page_edit ann
PUT  /api/v4/channels/c1/members/bob/roles            200         ann    page_edit ann
PUT  /api/v4/channels/c1/members/bob/schemeRoles      403         ann    page_error ann
PUT  /api/v4/channels/c1/members/bob/schemeRoles      401         forged - -
PUT  /api/v4/roles/r1/patch                           200         ann    page_edit ann
POST /api/v4/teams/t1/members                         201         ann    page_edit ann
POST /api/v4/teams/t1/members/batch                   201         ann    page_edit ann
POST /api/v4/teams/members/invite?token=5ecret        201         ann    page_edit ann
POST /api/v4/teams/members/invite?invite_id=5ecret    201         ann    page_edit ann
DELETE /api/v4/teams/t1/members/bob                   200         ann    page_delete ann
POST /api/v4/channels/c1/members                      201         ann    page_edit ann
DELETE /api/v4/channels/c1/members/bob                200         ann    page_delete ann
GET  /api/v4/teams/t1/members                         200         ann    - -
GET  /api/v4/teams/invite/5ecret                      200         ann    - -
# The server.
PUT  /api/v4/config                                   200         ann    page_edit ann
PUT  /api/v4/config                                   403         ann    page_error ann
PUT  /api/v4/config/patch                             200         ann    page_edit ann
POST /api/v4/config/reload                            200         ann    page_edit ann
GET  /api/v4/config                                   200         ann    - -
GET  /api/v4/config/client?format=old                 200         ann    - -
POST /api/v4/license                                  200         ann    page_edit ann
DELETE /api/v4/license                                200         ann    page_delete ann
GET  /api/v4/license/client?format=old                200         ann    - -
POST /api/v4/jobs                                     201         ann    page_edit ann
GET  /api/v4/jobs                                     200         ann    - -
POST /api/v4/ip_filtering                             200         ann    page_edit ann
GET  /api/v4/ip_filtering                             200         ann    - -
POST /api/v4/data_retention/policies                  201         ann    page_edit ann
PATCH /api/v4/data_retention/policies/p1              200         ann    page_edit ann
POST /api/v4/data_retention/policies/p1/teams         200         ann    page_edit ann
DELETE /api/v4/data_retention/policies/p1             200         ann    page_delete ann
DELETE /api/v4/data_retention/policies/p1/teams       200         ann    page_delete ann
GET  /api/v4/data_retention/policy                    200         ann    - -
# Bots, commands, OAuth applications, plugins, webhooks.
POST /api/v4/bots                                     201         ann    page_edit ann
PUT  /api/v4/bots/b1                                  200         ann    page_edit ann
POST /api/v4/bots/b1/disable                          200         ann    page_edit ann
POST /api/v4/bots/b1/assign/bob                       200         ann    page_edit ann
POST /api/v4/bots/b1/convert_to_user                  200         ann    page_edit ann
DELETE /api/v4/bots/b1/icon                           200         ann    page_delete ann
GET  /api/v4/bots                                     200         ann    - -
POST /api/v4/commands                                 201         ann    page_edit ann
POST /api/v4/commands/execute                         200         ann    page_edit ann
PUT  /api/v4/commands/c1                              200         ann    page_edit ann
PUT  /api/v4/commands/c1/regen_token                  200         ann    page_edit ann
DELETE /api/v4/commands/c1                            200         ann    page_delete ann
GET  /api/v4/commands?team_id=t1                      200         ann    - -
POST /api/v4/oauth/apps                               201         ann    page_edit ann
PUT  /api/v4/oauth/apps/a1                            200         ann    page_edit ann
POST /api/v4/oauth/apps/a1/regen_secret               200         ann    page_edit ann
DELETE /api/v4/oauth/apps/a1                          200         ann    page_delete ann
GET  /api/v4/oauth/apps                               200         ann    - -
POST /api/v4/plugins                                  201         ann    page_edit ann
POST /api/v4/plugins/install_from_url?plugin_download_url=https%3A%2F%2Fh%2F%3Ftoken%3D5ecret 201 ann page_edit ann
POST /api/v4/plugins/marketplace                      200         ann    page_edit ann
POST /api/v4/plugins/com.example.x/enable             200         ann    page_edit ann
POST /api/v4/plugins/com.example.x/disable            200         ann    page_edit ann
DELETE /api/v4/plugins/com.example.x                  200         ann    page_delete ann
GET  /api/v4/plugins/webapp                           200         ann    - -
POST /api/v4/hooks/incoming                           201         ann    page_edit ann
PUT  /api/v4/hooks/incoming/5ecret                    200         ann    page_edit ann
DELETE /api/v4/hooks/incoming/5ecret                  200         ann    page_delete ann
GET  /api/v4/hooks/incoming/5ecret                    200         ann    - -
POST /api/v4/hooks/outgoing                           201         ann    page_edit ann
PUT  /api/v4/hooks/outgoing/h1                        200         ann    page_edit ann
POST /api/v4/hooks/outgoing/h1/regen_token            200         ann    page_edit ann
DELETE /api/v4/hooks/outgoing/h1                      200         ann    page_delete ann
POST /hooks/5ecret                                    200         nobody - -
POST /hooks/5ecret                                    200         ann    - -
POST /hooks/commands/5ecret                           200         ann    - -
# What people write.
POST /api/v4/posts                                    201         ann    page_edit ann
POST /api/v4/posts                                    201         phone  page_edit ann
POST /api/v4/posts                                    201         token  - -
POST /api/v4/posts                                    401         forged - -
POST /api/v4/posts?access_token=5ecret                201         ann    page_edit ann
PUT  /api/v4/posts/p1                                 200         ann    page_edit ann
PUT  /api/v4/posts/p1/patch                           200         ann    page_edit ann
POST /api/v4/posts/p1/pin                             200         ann    page_edit ann
POST /api/v4/posts/p1/unpin                           401         forged - -
DELETE /api/v4/posts/p1                               200         ann    page_delete ann
DELETE /api/v4/posts/p1                               403         ann    page_error ann
DELETE /api/v4/posts/p1                               401         forged - -
POST /api/v4/files?channel_id=c1&filename=a.png       201         ann    page_edit ann
POST /api/v4/uploads                                  201         ann    page_edit ann
POST /api/v4/uploads/u1                               201         ann    - -
POST /api/v4/channels                                 201         ann    page_edit ann
PUT  /api/v4/channels/c1                              200         ann    page_edit ann
PUT  /api/v4/channels/c1/patch                        200         ann    page_edit ann
PUT  /api/v4/channels/c1/privacy                      200         ann    page_edit ann
PUT  /api/v4/channels/c1/moderations/patch            200         ann    page_edit ann
DELETE /api/v4/channels/c1                            200         ann    page_delete ann
POST /api/v4/teams                                    201         ann    page_edit ann
PUT  /api/v4/teams/t1                                 200         ann    page_edit ann
PUT  /api/v4/teams/t1/patch                           200         ann    page_edit ann
PUT  /api/v4/teams/t1/privacy                         200         ann    page_edit ann
DELETE /api/v4/teams/t1?permanent=false               200         ann    page_delete ann
# What they search.
POST /api/v4/posts/search                             200         ann    page_search ann
POST /api/v4/teams/t1/posts/search                    200         ann    page_search ann
POST /api/v4/files/search                             200         ann    page_search ann
POST /api/v4/teams/t1/files/search                    200         ann    page_search ann
POST /api/v4/users/search                             200         ann    page_search ann
POST /api/v4/channels/search                          200         ann    page_search ann
POST /api/v4/teams/search                             200         ann    page_search ann
POST /api/v4/teams/t1/channels/search                 200         ann    page_search ann
POST /api/v4/posts/search                             401         forged - -
# What they open and download.
POST /api/v4/channels/members/me/view                 200         ann    page_view ann
POST /api/v4/channels/members/me/view                 401         forged - -
GET  /api/v4/websocket?connection_id=&sequence_number=0 101       ann    page_view ann
GET  /api/v4/users/websocket                          101         ann    page_view ann
GET  /api/v4/websocket                                101         token  - -
GET  /api/v4/websocket                                400         ann    - -
GET  /api/v4/websocket                                401         forged - -
GET  /api/v4/files/f1                                 200         ann    page_view ann
GET  /api/v4/files/f1?download=1                      206         ann    page_view ann
GET  /api/v4/files/f1                                 404         ann    page_error ann
GET  /api/v4/files/f1                                 401         forged - -
GET  /api/v4/files/f1/link                            200         ann    page_view ann
GET  /files/f1/public?h=5ecret                        200         ann    page_view ann
GET  /files/f1/public?h=5ecret                        200         nobody - -
GET  /api/v4/files/f1/public?h=5ecret                 200         ann    page_view ann
GET  /api/v4/exports/export.zip                       200         ann    page_view ann
GET  /api/v4/compliance/reports/r1/download           200         ann    page_view ann
GET  /api/v4/system/support_packet                    200         ann    page_view ann
GET  /api/v4/files/f1/thumbnail                       200         ann    - -
GET  /api/v4/files/f1/preview                         200         ann    - -
GET  /api/v4/files/f1/info                            200         ann    - -
# Noise.
POST /api/v4/users/status/ids                         200         ann    - -
POST /api/v4/users/ids?since=0                        200         ann    - -
POST /api/v4/users/usernames                          200         ann    - -
POST /api/v4/users/group_channels                     200         ann    - -
POST /api/v4/posts/ids                                200         ann    - -
POST /api/v4/channels/c1/members/ids                  200         ann    - -
POST /api/v4/channels/stats/member_count              200         ann    - -
POST /api/v4/channels/members/me/mark_read            200         ann    - -
POST /api/v4/teams/t1/members/ids                     200         ann    - -
POST /api/v4/teams/t1/channels/ids                    200         ann    - -
POST /api/v4/users/ann/typing                         200         ann    - -
POST /api/v4/users/ann/posts/p1/set_unread            200         ann    - -
POST /api/v4/drafts                                   200         ann    - -
POST /api/v4/client_perf                              200         ann    - -
POST /api/v4/logs                                     200         ann    - -
PUT  /api/v4/users/ann/status                         200         ann    - -
PUT  /api/v4/users/ann/preferences                    200         ann    - -
POST /api/v4/users/ann/preferences/delete             200         ann    - -
PUT  /api/v4/users/ann/teams/t1/channels/categories   200         ann    - -
PUT  /api/v4/users/ann/teams/t1/channels/categories/c1 200        ann    - -
PUT  /api/v4/channels/c1/members/ann/notify_props     200         ann    - -
PUT  /api/v4/users/ann/teams/t1/threads/p1/read/1700000000000 200 ann    - -
GET  /                                                200         ann    - -
GET  /team/channels/town-square                       200         ann    - -
GET  /static/main.js                                  200         ann    - -
GET  /api/v4/users/me                                 200         ann    - -
GET  /api/v4/users/me/teams/unread                    200         ann    - -
GET  /api/v4/emoji?page=0                             200         ann    - -
GET  /api/v4/image?url=https%3A%2F%2Fexample.com%2F   200         ann    - -
GET  /api/v4/channels/c1/posts?since=1                200         ann    - -
GET  /api/v4/system/ping                              200         nobody - -
GET  /api/v4/teams/t1/posts/search                    405         ann    - -
HEAD /api/v4/files/f1                                 200         ann    - -
OPTIONS /api/v4/posts                                 204         ann    - -
# Plugins that nobody knows.
GET  /plugins/com.example.x/api/v1/boards             200         ann    - -
POST /plugins/com.example.x/api/v1/boards             200         ann    - -
PUT  /plugins/playbooks/api/v0/runs/r1                200         ann    - -
DELETE /plugins/com.example.x/posts/p1                200         ann    - -
POST /plugins/com.example.x/api/v4/users/login        200+cookies old    - -
# Other spellings of a path, and what only looks like one.
POST /api/v4//users//login                            401         old    account_login_fail new
POST //api/v4/users/login                             200+cookies old    account_login new
POST /api/v4/users/%6cogin                            401         old    account_login_fail new
POST /api/v4/users/./login                            401         old    account_login_fail new
POST /api/v4/x/%2e%2e/users/login                     401         old    account_login_fail new
POST /api/v4/x/../users/login                         200+cookies old    account_login new
POST /api%2fv4/users/login                            401         old    account_login_fail new
PUT  /api/v4/users/%61nn/%72oles                      200         ann    account_edit ann
DELETE /api/v4/./posts/p1/                            200         ann    page_delete ann
PUT  /api/v4/hooks/./incoming/%355ecret               200         ann    page_edit ann
POST /hooks//5ecret                                   200         ann    - -
POST /API/v4/users/login                              404         ann    - -
POST /api/v4/users/loginx                             404         ann    - -
POST /api/v4/users/login%2520                         404         ann    - -
POST /api/v4/users/login%3Fa=b                        404         ann    - -
POST /api/v5/users/login                              404         ann    - -
POST /x/api/v4/users/login                            404         ann    - -
POST /api/v4/posts/                                   201         ann    page_edit ann
POST /api/v4/posts/../../../../etc                    400         ann    - -
POST /api/v4/users/%zz                                400         ann    - -
";

#[test]
fn mattermost() {
    let server = format!("tirreno on; {}", preset("mattermost.conf"));
    let site = Site::start(&MATTERMOST, &server, |builder| {
        builder.http(&format!(
            "server {{
                 listen 127.0.0.1:%PORT1%;
                 {server}
                 tirreno_event_prefix /chat/;
                 {LOCATION}
             }}
             server {{
                 listen 127.0.0.1:%PORT2%;
                 location = /status {{ tirreno_status; }}
             }}"
        ))
    });
    // Nobody has signed in yet.
    let unknown = "
        POST /api/v4/users/login 401       nobody account_login_fail unknown
        POST /api/v4/users/login 401       old    account_login_fail unknown
        POST /api/v4/users/login 200+token nobody account_login      unknown
    ";
    site.check(site.nginx.port(), "", unknown);
    site.sensor.forget();
    let count = site.check(site.nginx.port(), "", MATTERMOST_TABLE);
    assert!(count >= 150, "{count} requests");
    let stored = site.sensor.stored();
    assert!(stored.iter().all(|event| event.user_name != "old" && event.user_name != "victim"));
    no_secret_is_left(&site);
    site.sensor.forget();

    // Under a subpath the same, and nothing above it.
    let tried = MATTERMOST_TABLE.lines().filter(|line| !line.contains("../../"));
    site.check(site.nginx.port_n(1), "/chat", &tried.collect::<Vec<_>>().join("\n"));
    no_secret_is_left(&site);
    site.sensor.forget();
    let request = |line: &str| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    let above = lines(MATTERMOST_TABLE).filter(|line| line.ends_with(" ann"));
    let above: String = above.map(|line| request(line) + " - -\n").collect();
    site.check_last(site.nginx.port_n(1), "", "/chat", &above);

    // What waits on disk while the sensor is down.
    site.sensor.refuse();
    let mut wire = Wire { port: site.nginx.port(), connection: None };
    for line in lines(MATTERMOST_TABLE).map(|line| MATTERMOST.read(line)) {
        wire.send(&MATTERMOST, &line, line.target);
    }
    wire.send(&MATTERMOST, &MATTERMOST.read(MATTERMOST.last), "/api/v4/posts?the_last_one");
    let is_spooled = |(name, bytes): &(String, Vec<u8>)| {
        let last = b"the_last_one";
        name.contains("/spool") && bytes.windows(last.len()).any(|window| window == last)
    };
    wait_until(SOON, "the spool", || site.remains().iter().any(is_spooled));
    no_secret_is_left(&site);
    site.sensor.listen_again();
}

/// Looks at every byte that is left of the requests.
#[track_caller]
fn no_secret_is_left(site: &Site) {
    let mut remains = site.remains();
    for (format, accept) in [("json", "*/*"), ("prometheus", "*/*"), ("html", "text/html")] {
        let path = format!("/status?format={format}");
        let answer = client::get(site.nginx.port_n(2), &path, &[("Accept", accept)]).unwrap();
        assert_eq!(answer.status, 200, "{format}");
        remains.push((path, answer.body));
    }
    assert!(remains.iter().any(|(name, _)| name.contains("/spool")), "there is a spool");
    assert!(remains.iter().any(|(name, _)| name.ends_with("/logs/error.log")), "there is a log");
    for (name, bytes) in remains {
        let found = bytes.windows(SECRET.len()).position(|window| window == SECRET.as_bytes());
        let around = found.map(|at| {
            let around = at.saturating_sub(80)..(at + 80).min(bytes.len());
            String::from_utf8_lossy(&bytes[around]).into_owned()
        });
        assert_eq!(around, None, "{name}");
    }
}

/// A person at work: what the web page sends, and how often.
const WORKING_DAY: &[(usize, &str)] = &[
    (1, "POST /api/v4/users/login 200+cookies nobody - -"),
    (1, "GET /team/channels/town-square 200 ann - -"),
    (40, "GET /static/main.js 200 ann - -"),
    (1, "GET /api/v4/websocket 101 ann - -"),
    (3, "GET /api/v4/config/client?format=old 200 ann - -"),
    (2, "GET /api/v4/users/me 200 ann - -"),
    (2, "GET /api/v4/users/me/teams/unread 200 ann - -"),
    (30, "GET /api/v4/users/u1/image 200 ann - -"),
    (20, "GET /api/v4/channels/c1/posts?since=1 200 ann - -"),
    (15, "POST /api/v4/channels/members/me/view 200 ann - -"),
    (15, "POST /api/v4/channels/c1/members/ids 200 ann - -"),
    (60, "POST /api/v4/users/status/ids 200 ann - -"),
    (10, "POST /api/v4/users/ids 200 ann - -"),
    (25, "POST /api/v4/users/ann/typing 200 ann - -"),
    (10, "PUT /api/v4/users/ann/preferences 200 ann - -"),
    (8, "POST /api/v4/posts 201 ann - -"),
    (2, "PUT /api/v4/posts/p1/patch 200 ann - -"),
    (1, "DELETE /api/v4/posts/p1 200 ann - -"),
    (1, "POST /api/v4/files 201 ann - -"),
    (10, "GET /api/v4/files/f1/thumbnail 200 ann - -"),
    (2, "GET /api/v4/files/f1 200 ann - -"),
    (3, "POST /api/v4/teams/t1/posts/search 200 ann - -"),
    (20, "GET /plugins/playbooks/api/v0/runs 200 ann - -"),
    (12, "POST /api/v4/client_perf 200 ann - -"),
    (1, "POST /api/v4/users/logout 200 ann - -"),
];

#[test]
fn mattermost_sends_an_eighth_of_what_it_would_without() {
    let mut counts = Vec::new();
    for events in [&*preset("mattermost.conf"), "tirreno_user $cookie_MMUSERID;"] {
        let site = Site::start(&MATTERMOST, &format!("tirreno on; {events}"), |builder| builder);
        let mut wire = Wire { port: site.nginx.port(), connection: None };
        for (times, line) in WORKING_DAY {
            let line = MATTERMOST.read(line);
            (0..*times).for_each(|_| wire.send(&MATTERMOST, &line, line.target));
        }
        site.finish(&mut wire, "");
        // Without the last one.
        counts.push(site.sensor.stored_count() - 1);
    }
    let requests: usize = WORKING_DAY.iter().map(|(times, _)| times).sum();
    println!("{requests} requests, {} events, {} without the preset", counts[0], counts[1]);
    // The login has no user without the preset.
    assert_eq!(counts, [35, requests - 1]);
    assert!(counts[0] * 8 < counts[1]);
}

#[test]
fn mattermosts_preset_can_be_changed_around_it() {
    let preset = preset("mattermost.conf");
    let server = format!(
        "tirreno on;
         tirreno_event off       POST \"/api/v4/channels/members/{{user_id}}/view\";
         tirreno_event page_view GET  \"/playbooks/{{*rest}}\";
         {preset}
         tirreno_user $cookie_other $cookie_MMUSERID;
         tirreno_event field_edit POST /api/v4/posts;
         tirreno_default_event page_error;
         location /api/v4/teams {{
             tirreno_event page_error PUT \"/api/v4/teams/{{team_id}}\";
             proxy_pass http://%BACKEND%/?$http_x_script;
         }}"
    );
    let site = Site::start(&MATTERMOST, &server, |builder| builder);
    let table = "
        POST /api/v4/channels/members/me/view 200 ann - -
        GET  /playbooks/runs                  200 ann page_view ann
        # The preset's rule stands before one after it.
        POST /api/v4/posts                    201 ann page_edit ann
        # A default of one's own; noise stays off.
        GET  /api/v4/users/me                 200 ann page_error ann
        POST /api/v4/users/ids                200 ann - -
        PUT  /api/v4/users/ann/preferences    200 ann - -
        # An inner level comes first.
        PUT  /api/v4/teams/t1                 200 ann page_error ann
        PUT  /api/v4/teams/t1/patch           200 ann page_edit ann
        POST /api/v4/users/login              401 old account_login_fail unknown
    ";
    site.check(site.nginx.port(), "", table);
}

const NEXTCLOUD: App = App {
    clients: &[
        ("ann", &[("Cookie", "oc_sessionPassphrase=5ecret; nc_username=ann; nc_token=5ecret")]),
        ("old", &[("Cookie", "nc_username=old; nc_token=5ecret")]),
        ("nobody", &[]),
        // dav:5ecret
        ("dav", &[("Authorization", "Basic ZGF2OjVlY3JldA==")]),
        ("last", &[("Cookie", "nc_username=last")]),
    ],
    answers: &[
        ("cookies", "set_cookie=nc_username%3Dnew&set_cookie=nc_token%3D5ecret"),
        ("expired", "set_cookie=nc_username%3Ddeleted;%20Max-Age%3D0"),
    ],
    last: "PUT /remote.php/dav/files/last/a.txt 201 last page_edit last",
    body: "user=ann&password=5ecret",
};

const NEXTCLOUD_TABLE: &str = "
POST /login                                             303+cookies nobody account_login new
POST /login                                             303+cookies old    account_login new
POST /index.php/login                                   303+cookies old    account_login new
POST /login                                             303         old    account_login_fail new
POST /login                                             303+expired old    account_login_fail new
POST /index.php/login                                   429         nobody account_login_fail new
POST /login/challenge/totp                              303+cookies nobody account_login new
POST /index.php/login/challenge/totp                    303         old    account_login_fail -
GET  /login                                             200         nobody - -
POST /login/confirm                                     200         ann    - -
GET  /logout?requesttoken=5ecret                        303         ann    account_logout ann
GET  /index.php/logout                                  303+expired ann    account_logout ann
POST /settings/personal/authtokens                      200         ann    account_edit ann
DELETE /index.php/settings/personal/authtokens/7        200         ann    account_edit ann
POST /settings/personal/authtokens/wipe/7               200         ann    account_edit ann
PUT  /ocs/v2.php/cloud/users/bob                        200         ann    account_edit ann
PUT  /ocs/v2.php/cloud/users/bob                        403         ann    - -
POST /ocs/v2.php/cloud/users                            401         old    - -
GET  /ocs/v2.php/cloud/users/bob                        200         ann    - -
POST /ocs/v2.php/apps/files_sharing/api/v1/shares       200         ann    page_edit ann
DELETE /ocs/v2.php/apps/files_sharing/api/v1/shares/3   200         ann    page_delete ann
GET  /remote.php/dav/files/ann/a/b.txt                  200         ann    page_view ann
PUT  /remote.php/dav/files/dav/b.txt                    201         dav    page_edit dav
PUT  /remote.php/dav/files/dav/b.txt                    401         dav    - -
MOVE /remote.php/dav/files/ann/b.txt                    201         ann    page_edit ann
DELETE /remote.php/dav/files/ann/b.txt                  204         ann    page_delete ann
PROPFIND /remote.php/dav/files/ann/                     207         ann    - -
GET  /s/5ecret                                          200         ann    - -
GET  /index.php/apps/files/                             200         ann    - -
GET  /core/img/logo.svg                                 200         ann    - -
";

const GITLAB: App = App {
    clients: &[
        ("ann", &[("Cookie", "_gitlab_session=5ecret; known_sign_in=5ecret")]),
        ("token", &[("Private-Token", "5ecret")]),
        ("last", &[("X-Forwarded-User", LAST)]),
    ],
    answers: &[(
        "cookies",
        "set_cookie=known_sign_in%3D5ecret&set_cookie=_gitlab_session%3D5ecret",
    )],
    last: "POST /users/sign_out 302 last account_logout last",
    body: "user[login]=ann&user[password]=5ecret",
};

const GITLAB_TABLE: &str = "
POST /users/sign_in                                     302+cookies ann    account_login -
POST /users/sign_in                                     200         ann    account_login_fail -
POST /users/sign_in                                     422         ann    account_login_fail -
POST /users/sign_in                                     302         ann    - -
GET  /users/sign_in                                     200         ann    - -
GET  /users/auth/google/callback?code=5ecret&state=5ecret 302+cookies ann  account_login -
POST /users/auth/saml/callback                          302+cookies ann    account_login -
POST /users/auth/saml/callback                          302         ann    - -
POST /users/auth/saml                                   302         ann    - -
POST /users/sign_out                                    302         ann    account_logout -
POST /users                                             302         ann    account_registration -
POST /users                                             200         ann    - -
POST /-/user_settings/personal_access_tokens            200         ann    account_edit -
POST /-/user_settings/personal_access_tokens            422         ann    - -
POST /-/user_settings/ssh_keys                          302         ann    account_edit -
POST /-/user_settings/ssh_keys                          200         ann    - -
GET  /-/invites/5ecret                                  200         ann    - -
GET  /group/project/-/issues                            200         ann    - -
GET  /api/v4/user?private_token=5ecret                  200         token  - -
";

const WORDPRESS: App = App {
    clients: &[
        (
            "ann",
            &[(
                "Cookie",
                "wordpress_test_cookie=WP; \
                 wordpress_logged_in_0a1b2c3d=ann%7C1700000000%7C5ecret%7C5ecret; a=b",
            )],
        ),
        ("bar", &[("Cookie", "wordpress_logged_in_0a1b2c3d=bar|1700000000|5ecret|5ecret")]),
        // Another cookie that has the name in its value.
        (
            "other",
            &[("Cookie", "x=wordpress_logged_in_1=eve%7C5ecret; y_wordpress_logged_in_1=eve%7C1")],
        ),
        ("nobody", &[("Cookie", "wordpress_test_cookie=WP")]),
        ("last", &[("Cookie", "wordpress_logged_in_=last%7C1")]),
    ],
    answers: &[
        (
            "cookies",
            "set_cookie=wordpress_sec_0a1b%3Dnew%257C17%257C5ecret\
             &set_cookie=wordpress_logged_in_0a1b%3Dnew%257C17%257C5ecret%257C5ecret",
        ),
        ("cleared", "set_cookie=wordpress_logged_in_0a1b%3D%2520;%20Max-Age%3D0"),
        ("admin", "header=Location:https%3A%2F%2Fh%2Fwp-admin%2F"),
        ("login", "header=Location:https%3A%2F%2Fh%2Fwp-login.php?redirect_to%3Dx%26reauth%3D1"),
        ("updated", "header=Location:https%3A%2F%2Fh%2Fwp-admin%2Fprofile.php?updated%3D1"),
        ("registered", "header=Location:wp-login.php?checkemail%3Dregistered"),
    ],
    last: "POST /wp-comments-post.php 302 last page_edit last",
    body: "log=ann&pwd=5ecret",
};

const WORDPRESS_TABLE: &str = "
POST /wp-login.php                                     302+cookies+admin nobody account_login new
POST /wp-login.php                                     302+cookies+admin ann    account_login new
POST /wp-login.php                                     200+cookies       ann    account_login new
POST /wp-login.php                                     302+admin         ann    account_login unknown
POST /wp-login.php?action=login                        200               nobody account_login_fail unknown
POST /wp-login.php                                     200               ann    account_login_fail unknown
POST /wp-login.php                                     403               ann    account_login_fail unknown
POST /wp-login.php?action=lostpassword                 302               nobody - -
POST /wp-login.php?action=resetpass&key=5ecret         200               ann    - -
POST /wp-login.php?action=postpass                     302               ann    - -
POST /wp-login.php?action=register                     302+registered    ann    account_registration -
POST /wp-login.php?action=register                     200               nobody - -
GET  /wp-login.php                                     200               nobody - -
GET  /wp-login.php?action=logout&_wpnonce=5ecret       302+cleared       ann    account_logout ann
GET  /wp-login.php?action=logout                       403               ann    - -
POST /wp-admin/profile.php                             302+updated       ann    account_edit ann
POST /wp-admin/profile.php                             302+login         ann    - -
POST /wp-admin/profile.php                             200               ann    - -
POST /wp-admin/user-edit.php?user_id=7                 302+updated       bar    account_edit bar
POST /wp-comments-post.php                             302               bar    page_edit bar
POST /wp-comments-post.php                             302               other  - -
POST /wp-json/wp/v2/posts                              201               ann    page_edit ann
POST /wp-json/wp/v2/posts/7                            200               ann    page_edit ann
POST /wp-json/wp/v2/posts/7/autosaves                  200               ann    - -
POST /wp-json/wp/v2/posts                              401               ann    - -
DELETE /wp-json/wp/v2/posts/7                          200               ann    page_delete ann
GET  /wp-json/wp/v2/posts                              200               ann    - -
POST /wp-admin/admin-ajax.php                          200               ann    - -
GET  /wp-admin/                                        200               ann    - -
GET  /2026/11/hello/                                   200               ann    - -
";

/// The status, for [`no_secret_is_left`].
const STATUS: &str = "server { listen 127.0.0.1:%PORT2%; location = /status { tirreno_status; } }";

#[test]
fn nextcloud() {
    let server = format!("tirreno on; {}", preset("nextcloud.conf"));
    let site = Site::start(&NEXTCLOUD, &server, |builder| builder.http(STATUS));
    site.check(site.nginx.port(), "", NEXTCLOUD_TABLE);
    no_secret_is_left(&site);
}

#[test]
fn gitlab() {
    // As its comment says for another proxy's users.
    let server =
        format!("tirreno on; {} tirreno_user $http_x_forwarded_user;", preset("gitlab.conf"));
    let site = Site::start(&GITLAB, &server, |builder| builder.http(STATUS));
    site.check(site.nginx.port(), "", GITLAB_TABLE);
    no_secret_is_left(&site);
}

#[test]
fn wordpress() {
    let server = format!("tirreno on; {}", preset("wordpress.conf"));
    let http = preset("wordpress-http.conf");
    // It sees the first of several cookies only, which is not the one with the name.
    let table = match nginx_is_before(23) {
        true => WORDPRESS_TABLE
            .replace(
                "200+cookies       ann    account_login new",
                "200 ann account_login_fail unknown",
            )
            .replace("account_login new", "account_login unknown"),
        false => WORDPRESS_TABLE.to_owned(),
    };
    let site = Site::start(&WORDPRESS, &server, |builder| builder.http(&http).http(STATUS));
    site.check(site.nginx.port(), "", &table);
    no_secret_is_left(&site);
}

/// nginx has no word against a preset, at each level where it may be.
#[test]
fn presets_pass_without_a_warning() {
    let mut names: Vec<_> = fs::read_dir(presets())
        .expect("the presets")
        .map(|entry| entry.expect("the presets").file_name().into_string().expect("a name"))
        .collect();
    names.sort_unstable();
    let known = ["gitlab.conf", "mattermost.conf", "nextcloud.conf", "wordpress-http.conf"];
    assert_eq!(names, [&known[..], &["wordpress.conf"]].concat(), "each preset has a test");
    for name in names.iter().filter(|name| !name.ends_with("-http.conf")) {
        let mut builder = Nginx::builder()
            .file("preset.conf", &preset(name))
            .file("http.conf", &preset("wordpress-http.conf"))
            .http("tirreno_target { url http://127.0.0.1:9/sensor/; api_key test-key; }");
        if name == "wordpress.conf" {
            builder = builder.http("include http.conf;");
        }
        let nginx = builder
            .server("tirreno on; include preset.conf; location / { return 204; }")
            .http(
                "server {
                     listen 127.0.0.1:%PORT1%;
                     location / { tirreno on; include preset.conf; return 204; }
                 }",
            )
            .build();
        let (ok, output) = nginx.test();
        let complaints = ["[emerg]", "[error]", "[warn]"];
        assert!(ok && !complaints.iter().any(|word| output.contains(word)), "{name}: {output}");
    }
}
