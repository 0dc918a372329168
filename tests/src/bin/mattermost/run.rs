//! nginx before Mattermost, its clients, and their actions.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tirreno_tests::application::{
    Body, FIREFOX, Options, PASSWORD, Request, Stage, cookie_header, take_cookies, user_name,
};
use tirreno_tests::cases;
use tirreno_tests::client::Response;
use tirreno_tests::nginx::Nginx;
use tirreno_tests::tls::Authority;

/// Mattermost's host name, whatever its port.
const HOST: &str = "mattermost.example.com";

const PHONE: &str = "Mattermost Mobile/2.20.0+561 (iOS; 17.5.1; iPhone15,2)";
const SCRIPT: &str = "python-requests/2.32.3";

/// nginx before Mattermost, and what was done there.
pub(crate) struct Run {
    pub(crate) stage: Stage,
    /// Mattermost's version.
    pub(crate) version: String,
    /// Names of users by their ids.
    pub(crate) names: HashMap<String, String>,
    psql: Option<String>,
    _certificates: TempDir,
}

/// A browser, an app, or a program.
#[derive(Clone)]
pub(crate) struct Client {
    agent: &'static str,
    address: String,
    /// A browser says so in a header, and Mattermost then answers with cookies.
    is_browser: bool,
    pub(crate) cookies: BTreeMap<String, String>,
    /// The header `Authorization`.
    pub(crate) authorization: Option<String>,
    /// More headers.
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl Client {
    fn new(agent: &'static str, address: &str) -> Self {
        Self {
            agent,
            address: address.into(),
            is_browser: false,
            cookies: BTreeMap::new(),
            authorization: None,
            headers: Vec::new(),
        }
    }

    /// A browser at that address.
    pub(crate) fn browser(address: &str) -> Self {
        Self { is_browser: true, ..Self::new(FIREFOX, address) }
    }

    /// A telephone at that address: it gets a token at its sign-in.
    pub(crate) fn phone(address: &str) -> Self {
        Self::new(PHONE, address)
    }

    /// A program with a token.
    pub(crate) fn script(address: &str, authorization: &str) -> Self {
        Self { authorization: Some(authorization.into()), ..Self::new(SCRIPT, address) }
    }

    /// The same client with another `User-Agent`.
    pub(crate) fn named(self, agent: &'static str) -> Self {
        Self { agent, ..self }
    }

    /// The same with another header.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name, value.into()));
        client
    }

    /// The same with another cookie.
    pub(crate) fn with_cookie(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.cookies.insert(name.into(), value.into());
        client
    }

    /// The request that the browser sends when another site's page makes it.
    pub(crate) fn sent_by_another_site(&self) -> Self {
        let mut client = Self { is_browser: false, ..self.clone() };
        client.cookies.remove("MMCSRF");
        client
    }
}

/// Mattermost's answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) json: Value,
    response: Option<Response>,
}

impl Answer {
    /// The text at a pointer into its JSON.
    #[track_caller]
    pub(crate) fn text(&self, pointer: &str) -> String {
        let found = self.json.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("no {pointer} in {}", self.json)).to_owned()
    }

    /// The text of its `id`.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        self.text("/id")
    }

    /// The header's first value.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.response.as_ref()?.header(name)
    }
}

impl Run {
    /// nginx as `nginx-conf/mattermost.conf` has it, with an audit file beside Tirreno.
    /// `sensor` is the URL to which events are sent with `api_key`.
    pub(crate) fn start(options: &Options, sensor: &str, api_key: &str) -> Self {
        let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf").canonicalize();
        let conf = conf.expect("the configurations");
        let text = fs::read_to_string(conf.join("mattermost.conf")).expect("mattermost.conf");
        let certificates = tempfile::tempdir().expect("a directory");
        let authority = Authority::new("mattermost");
        let (certificate, key) = authority.leaf(&[HOST]).write(certificates.path(), "mattermost");
        let letsencrypt = |file: &str| format!("/etc/letsencrypt/live/{HOST}/{file}");
        let pairs = [
            ("127.0.0.1:8065", &*options["server"]),
            (" 80;", " 127.0.0.1:%PORT1%;"),
            (" 443 ssl", " 127.0.0.1:%PORT2% ssl"),
            ("https://tirreno.example.com/sensor/", "%SENSOR%"),
            (" /etc/nginx/tirreno.key;", " key;"),
            (" /usr/share/ngx-tirreno", &format!(" {}", conf.display())),
            (" /var/lib/nginx/tirreno;", " logs/spool;"),
            (" /var/lib/nginx/tirreno/state;", " logs/state;"),
            (&letsencrypt("fullchain.pem"), certificate.to_str().expect("a path")),
            (&letsencrypt("privkey.pem"), key.to_str().expect("a path")),
            // Each client has an address of its own.
            ("# set_real_ip_from  10.0.0.0/8;", "set_real_ip_from 127.0.0.1;"),
            ("# real_ip_header ", "real_ip_header "),
        ];
        let text = pairs.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "no {from:?} in\n{text}");
            text.replace(from, to)
        });
        let nginx = Nginx::builder()
            .binary(&options["nginx"])
            .module(&options["module"])
            .sensor(sensor)
            .file("mattermost.conf", &text)
            .file("key", api_key)
            .file("audit.key", "0123456789abcdef0123456789abcdef")
            .http("include mattermost.conf;")
            .http(
                "tirreno_target audit {
                     type file; path logs/audit.log; format mattermost hash_key_file=audit.key;
                 }",
            )
            .http(cases::LOG)
            .server("location = /status { tirreno_status; }")
            .start();
        let mut stage = Stage::new(nginx, HOST, authority.client_config());
        stage.secrets.insert(PASSWORD[1..PASSWORD.len() - 1].to_owned());
        let mut run = Self {
            stage,
            version: String::new(),
            names: HashMap::new(),
            psql: options.get("psql").cloned(),
            _certificates: certificates,
        };
        let mut nobody = Client::browser("198.51.100.66");
        run.version = run.quiet(&mut nobody, "GET /config/client?format=old", ()).text("/Version");
        run
    }

    /// Makes a request whose record does not matter.
    #[track_caller]
    pub(crate) fn quiet(
        &mut self,
        client: &mut Client,
        line: &str,
        body: impl Into<Body>,
    ) -> Answer {
        self.request("-", client, line, body.into()).0
    }

    /// Makes a request. `line` is its method and its path, which is below `/api/v4` unless it begins with
    /// `~`. `expected` is the answer's status and, if an event is expected, its type and its user.
    #[track_caller]
    pub(crate) fn act(
        &mut self,
        what: &str,
        client: &mut Client,
        line: &str,
        body: impl Into<Body>,
        expected: &str,
    ) -> Answer {
        let case = self.stage.next_case();
        let (answer, line) = self.request(&case, client, line, body.into());
        if !self.stage.expect(what, &line, answer.status, expected) {
            // What follows may fail for it.
            eprintln!("{what}: {line}: {} instead of {expected}: {}", answer.status, answer.json);
        }
        answer
    }

    #[track_caller]
    fn request(
        &mut self,
        case: &str,
        client: &mut Client,
        line: &str,
        body: Body,
    ) -> (Answer, String) {
        let (method, path) = line.split_once(' ').expect("a method and a path");
        let target = match path.strip_prefix('~') {
            Some(path) => path.to_owned(),
            None => format!("/api/v4{path}"),
        };
        let cookies = cookie_header(&client.cookies);
        let mut headers = vec![
            ("User-Agent", client.agent),
            ("X-Forwarded-For", &client.address),
            ("Accept-Encoding", "gzip, deflate, br"),
        ];
        if client.is_browser {
            headers.push(("X-Requested-With", "XMLHttpRequest"));
        }
        if let Some(token) = client.cookies.get("MMCSRF") {
            headers.push(("X-CSRF-Token", token));
        }
        if let Some(authorization) = &client.authorization {
            headers.push(("Authorization", authorization));
        }
        if !cookies.is_empty() {
            headers.push(("Cookie", &cookies));
        }
        headers.extend(client.headers.iter().map(|(name, value)| (*name, &**value)));
        headers.extend(body.kind.map(|kind| ("Content-Type", kind)));
        let line = format!("{method} {target}");
        let request = Request { case, line: &line, headers: &headers, body: &body.bytes };
        let response = self.stage.send(&request);
        take_cookies(&mut client.cookies, &response);
        let json: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        self.learn(&json);
        let tokens = ["MMAUTHTOKEN", "MMCSRF"];
        self.stage
            .secrets
            .extend(tokens.iter().filter_map(|name| client.cookies.get(*name).cloned()));
        self.stage.secrets.extend(response.header("Token"));
        let names = ["token", "access_token", "client_secret", "secret", "invite_id"];
        self.stage
            .secrets
            .extend(names.iter().filter_map(|name| json[name].as_str().map(str::to_owned)));
        let token = response.header("Token").filter(|_| target.ends_with("/users/login"));
        if let Some(token) = token.filter(|_| !client.is_browser) {
            client.authorization = Some(format!("BEARER {token}"));
        }
        let answer = Answer { status: response.status, json, response: Some(response) };
        (answer, line)
    }

    /// Learns from answers which user has which id.
    fn learn(&mut self, json: &Value) {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        let id = text("id").or_else(|| text("user_id"));
        if let (Some(id), Some(name)) = (id, text("username")) {
            self.names.entry(id).or_insert(name);
        }
    }

    /// The id of a user.
    #[track_caller]
    pub(crate) fn id(&self, name: &str) -> String {
        let found = self.names.iter().find(|(_, have)| *have == name);
        found.unwrap_or_else(|| panic!("{name} is not known")).0.clone()
    }

    /// A user's name, or the name for an unknown user.
    pub(crate) fn name(&self, user: &str) -> String {
        let user = user_name(user);
        self.names.get(user).cloned().unwrap_or_else(|| user.into())
    }

    /// The first row of a statement in Mattermost's database; `None` without a command for it.
    pub(crate) fn sql(&self, statement: &str) -> Option<String> {
        let command = self.psql.as_ref()?;
        let mut words = command.split(' ');
        let output = Command::new(words.next()?).args(words).arg(statement).output();
        let output = output.expect("psql runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().into())
    }
}
