//! `ci/explain` says which rule a request would match, and why earlier rules would not match.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CONF: &str = r#"
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path temporary/body;
    proxy_temp_path temporary/proxy;
    fastcgi_temp_path temporary/fastcgi;
    uwsgi_temp_path temporary/uwsgi;
    scgi_temp_path temporary/scgi;
    tirreno_target { url http://127.0.0.1:9/sensor/; api_key test-key; }
    map $http_x_kind $kind { default ''; special yes; }
    server {
        listen 127.0.0.1:%PORT%;
        server_name a.example;
        tirreno on;
        tirreno_user $cookie_user;
        include rules.conf;
        location / { return 200; }
        location /inner/ {
            tirreno_event page_search GET "/inner/{name}";
            return 200;
        }
        location ~ ^/re/(?<word>[a-z]+)$ { tirreno_user $word; return 200; }
        location = /off { tirreno off; return 200; }
        location /pages/ { tirreno_url page; include pages.conf; return 200; }
    }
    server {
        listen 127.0.0.1:%PORT%;
        server_name *.example b.test;
        tirreno on;
        tirreno_anonymous on;
        tirreno_default_event off;
        location / { return 200; }
        location /session {
            tirreno_user $cookie_user;
            tirreno_session cookie:sid;
            tirreno_event page_edit PUT /session session=required;
        }
    }
}
"#;

const RULES: &str = r#"tirreno_event account_login POST /login status=2xx user=$sent_http_x_user;
tirreno_event account_login_fail POST /login user=body:name body=json unknown=send;
tirreno_event page_edit PUT "/things/{id}" if=$kind;
tirreno_event page_delete DELETE,PUT "/things/{id}";
tirreno_event off GET /quiet;
tirreno_event page_view GET "/hooks/{key}" redact=key;
"#;

const PAGES: &str = r#"tirreno_event page_view GET "/pages/{id}/{key}" redact=key arg=q:arg:q "title=Page of $arg_q";
"#;

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port that nobody listens on.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let conf = CONF.replace("%PORT%", &port.to_string());
        fs::write(dir.path().join("nginx.conf"), conf).unwrap();
        fs::write(dir.path().join("rules.conf"), RULES).unwrap();
        fs::write(dir.path().join("pages.conf"), PAGES).unwrap();
        for name in ["logs", "temporary"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let of = |name| PathBuf::from(std::env::var_os(name).expect("ci/test sets it"));
        Command::new(root.join("ci/explain"))
            .arg("--nginx")
            .arg(of("TEST_NGINX_BINARY"))
            .arg("--module")
            .arg(of("TEST_NGINX_MODULE"))
            .arg("--prefix")
            .arg(self.dir.path())
            .arg(self.dir.path().join("nginx.conf"))
            .args(arguments)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn explain(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }

    /// Asserts that the explanation has all of these lines.
    #[track_caller]
    fn assert_says(&self, arguments: &[&str], lines: &[&str]) {
        let text = self.explain(arguments);
        for line in lines {
            assert!(text.lines().any(|known| known == *line), "no {line:?} in\n{text}");
        }
    }
}

#[test]
fn the_rule_and_why_not_the_ones_before() {
    let site = Site::start();
    let text = site.explain(&["PUT", "/things/7", "200", "Host: a.example", "Cookie: user=ann"]);
    let expected = [
        "request: PUT /things/7, answered 200",
        "server: a.example in nginx.conf:13",
        "location: /",
        "path: /things/7",
        "rules.conf:1: account_login POST /login: no, another path",
        "rules.conf:2: account_login_fail POST /login: no, another path",
        "rules.conf:3: page_edit PUT /things/{id}: no, \"if=$kind\" does not hold",
        "rules.conf:4: page_delete DELETE,PUT /things/{id}: yes",
        "event: page_delete, by rules.conf:4",
        "user: ann",
        "identity: claim",
        "url: /things/7",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);

    // nginx evaluates the variables in conditions.
    site.assert_says(
        &["PUT", "http://a.example/things/7", "200", "X-Kind: special", "Cookie: user=ann"],
        &["rules.conf:3: page_edit PUT /things/{id}: yes", "event: page_edit, by rules.conf:3"],
    );
    site.assert_says(
        &["DELETE", "/things//7?a=1&token=x", "404", "Host: a.example"],
        &[
            "path: /things/7",
            "rules.conf:3: page_edit PUT /things/{id}: no, another method",
            "event: page_delete, by rules.conf:4",
            "user: none, and without a user it is skipped",
            "url: /things//7?a=1&token=***",
        ],
    );
}

#[test]
fn what_the_answer_and_the_body_say() {
    let site = Site::start();
    site.assert_says(
        &["POST", "http://a.example/login", "200", "< X-User: bob", "Cookie: user=ann"],
        &["rules.conf:1: account_login POST /login: yes", "user: bob", "identity: answer"],
    );
    let body = site.file("body", r#"{"name":"eve","password":"5ecr3t"}"#);
    let text = site.explain(&["POST", "http://a.example/login", "401", "--body", &body]);
    assert!(text.contains("account_login POST /login: no, \"status=\" does not hold\n"), "{text}");
    assert!(text.contains("event: account_login_fail, by rules.conf:2\nuser: eve\n"), "{text}");
    assert!(!text.contains("5ecr3t"), "{text}");
    site.assert_says(
        &["POST", "http://a.example/login", "401"],
        &["event: account_login_fail, by rules.conf:2", "user: unknown-unread"],
    );
    // It is unknown whether the login would have failed.
    site.assert_says(&["POST", "http://a.example/login", "499"], &["outcome: attempt"]);
}

#[test]
fn servers_and_locations() {
    let site = Site::start();
    let cases = [
        ("http://a.example/", "a.example", "/"),
        ("http://A.EXAMPLE/inner/x", "a.example", "/inner/"),
        ("http://a.example/re/word", "a.example", "~ ^/re/(?<word>[a-z]+)$"),
        ("http://a.example/off", "a.example", "= /off"),
        ("http://a.example/x/../off", "a.example", "= /off"),
        ("http://c.example/off", "*.example", "/"),
        ("http://b.test/", "*.example", "/"),
        ("http://other/", "a.example", "/"),
        ("/", "a.example", "/"),
    ];
    for (target, server, location) in cases {
        let text = site.explain(&["GET", target, "200"]);
        assert!(text.contains(&format!("\nserver: {server} in ")), "{target}\n{text}");
        assert!(text.contains(&format!("\nlocation: {location}\n")), "{target}\n{text}");
    }
    site.assert_says(
        &["GET", "http://a.example/off", "200"],
        &["event: none, \"tirreno\" is off here"],
    );
    site.assert_says(
        &["GET", "http://a.example/inner/x", "200"],
        &["nginx.conf:21: page_search GET /inner/{name}: yes"],
    );
    site.assert_says(&["GET", "http://a.example/re/word", "200"], &["user: word"]);
    site.assert_says(
        &["GET", "http://a.example/quiet", "200"],
        &["rules.conf:5: off GET /quiet: yes", "event: none, this rule says so"],
    );
    site.assert_says(&["GET", "http://a.example/hooks/abc", "200"], &["url: /hooks/***"]);
    site.assert_says(
        &["GET", "http://a.example/pages/7/abc?q=%zz&q=x", "200"],
        &["url: /pages/{id}/{key}?id=7&key=***&q=x", "title: Page of %zz"],
    );
    site.assert_says(
        &["GET", "http://a.example/pages/7/abc?q=%7B%22password%22:%225ecret%22%7D", "200"],
        &["url: /pages/{id}/{key}?id=7&key=***&q=***"],
    );
    site.assert_says(
        &["GET", "http://c.example/", "200"],
        &["event: none, no rule is for it and \"tirreno_default_event\" is off"],
    );
    site.assert_says(
        &["GET", "http://a.example/", "200", "Cookie: user=ann"],
        &["event: page_view, by \"tirreno_default_event\"", "user: ann"],
    );
}

#[test]
fn a_session_that_is_nobodys_is_its_own_user() {
    let site = Site::start();
    let asked = ["PUT", "http://b.test/session", "200", "Cookie: user=ann; sid=1"];
    let text = site.explain(&asked);
    assert!(text.contains("\nuser: session-"), "{text}");
    // Without a session, the claim counts.
    site.assert_says(
        &["PUT", "http://b.test/session", "200", "Cookie: user=ann"],
        &["user: ann", "identity: claim"],
    );
}

/// As on Debian, `nginx.conf` includes the file that loads the module. Then nothing is built.
#[test]
fn a_module_that_an_include_loads() {
    let site = Site::start();
    let module = std::env::var("TEST_NGINX_MODULE").expect("ci/test sets it");
    site.file("modules.conf", &format!("load_module {module};\n"));
    let conf = fs::read_to_string(site.dir.path().join("nginx.conf")).unwrap();
    let conf = site.file("nginx.conf", &format!("include modules.conf;\n{conf}"));
    // Tools that ci/build would need.
    let cargo = site.file("cargo", "#!/bin/sh\nexit 1\n");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", site.dir.path().display(), std::env::var("PATH").unwrap());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(root.join("ci/explain"))
        .env("PATH", path)
        .arg("--nginx")
        .arg(std::env::var_os("TEST_NGINX_BINARY").expect("ci/test sets it"))
        .arg("--prefix")
        .arg(site.dir.path())
        .args([&conf, "GET", "http://a.example/quiet", "200"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{error}");
    assert!(text.contains("event: none, this rule says so"), "{text}");
    assert!(!error.contains("==>"), "something was built: {error}");
}

#[test]
fn an_nginx_that_was_never_installed_needs_no_prefix() {
    let nginx = std::env::var("TEST_NGINX_BINARY").expect("ci/test sets it");
    let about = Command::new(&nginx).arg("-V").output().unwrap().stderr;
    let about = String::from_utf8(about).unwrap();
    // A distribution's nginx writes to directories that its package creates.
    if about.contains("--http-log-path") || Path::new("/usr/local/nginx").exists() {
        return;
    }
    let site = Site::start();
    let conf = CONF.lines().filter(|line| {
        !["pid ", "access_log", "_temp_path"].iter().any(|directive| line.contains(directive))
    });
    let conf = conf.collect::<Vec<_>>().join("\n").replace("%PORT%", "8080");
    let conf = site.file("nginx.conf", &conf);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(root.join("ci/explain"))
        .args(["--nginx", &nginx, "--module"])
        .arg(std::env::var_os("TEST_NGINX_MODULE").expect("ci/test sets it"))
        .args([&conf, "GET", "http://a.example/quiet", "200"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("event: none, this rule says so"), "{text}");
}

#[test]
fn what_is_wrong() {
    let site = Site::start();
    let cases: [(&[&str], &str); 11] = [
        (&["GET", "/"], "CONF, METHOD, TARGET and STATUS are needed"),
        (&["GET", "/", "2000"], "invalid status \"2000\", it must be a number like 200"),
        (&["GET", "/", "99"], "invalid status \"99\", it must be a number like 200"),
        (&["GE T", "/", "200"], "invalid method \"GE T\", it must be like \"GET\""),
        (&["get", "/", "200"], "invalid method \"get\", it must be like \"GET\""),
        (&["GET", "/a%zz", "200"], "nginx answers 400 to the target \"/a%zz\""),
        (&["GET", "/a%2", "200"], "nginx answers 400 to the target \"/a%2\""),
        (&["GET", "/a%00?x", "200"], "nginx answers 400 to the target \"/a%00?x\""),
        (&["GET", "x", "200"], "invalid target \"x\", it must begin with \"/\" or be a URL"),
        (&["GET", "/", "200", "no header"], "invalid header \"no header\", it must be"),
        (&["GET", "/", "200", "--body", "/nonexistent"], "--body needs a file that can be read"),
    ];
    for (arguments, error) in cases {
        let output = site.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(error), "{arguments:?} {text}");
    }
    fs::write(site.dir.path().join("rules.conf"), "tirreno_event nonsense;").unwrap();
    let output = site.run(&["GET", "/", "200"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("rules.conf:1"), "{text}");
}
