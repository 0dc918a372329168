//! The messages of `nginx -t` about a configuration.
//!
//! Each row is a configuration and the complete list of nginx's messages about it. A message ends with the
//! file and the line that it is about: the line that ends with [`HERE`].

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, iter};

use tirreno_tests::nginx::{Builder, Nginx};
use tirreno_tests::tls::Authority;

/// Marks a line that a message names.
const HERE: &str = "# here";

/// The key in the rows, which no message may contain.
const KEY: &str = "5ecr3tK3y";

/// A complete target.
const TARGET: &str = "tirreno_target { url http://127.0.0.1:9/; api_key %KEY%; }";

const TYPES: &str = "page_view, page_edit, page_delete, page_search, page_error, account_login, \
    account_logout, account_login_fail, account_registration, account_email_change, \
    account_password_change, account_edit, field_edit";

const PARAMETERS: &str = "userName, emailAddress, ipAddress, url, userAgent, eventTime, \
    httpReferer, httpMethod, httpCode, browserLanguage, eventType, firstName, lastName, fullName, \
    pageTitle, phoneNumber, userCreated, payload, fieldHistory";

const NO_USER: &str = "[warn] \"tirreno\" is on without \"tirreno_user\" or \
    \"tirreno_anonymous on\", nothing will be captured";

const UNVERIFIED: &str = "[warn] \"ssl_verify off\" lets anybody pretend to be the server, remove it and name \
    the server's certificate or its authority in \"ssl_trusted_certificate\",";

/// A configuration with a certificate authority in `ca.pem` and keys in `key` and `empty.key`.
fn configuration(http: &str) -> Builder {
    Nginx::builder()
        .var("KEY", KEY)
        .var("TARGET", &TARGET.replace("%KEY%", KEY))
        .file("key", "%KEY%")
        .file("empty.key", " \n")
        .file("two.key", "%KEY%\n%KEY%\n")
        .file("ca.pem", &Authority::new("test").pem())
        .file("text.pem", "no certificate\n")
        .file("cut.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n")
        .http(http)
}

/// A target that is complete except for `lines`.
fn target(lines: &str) -> String {
    format!("tirreno_target {{\nurl http://127.0.0.1:9/;\napi_key %KEY%;\n{lines}\n}}")
}

/// Asserts that nginx logs exactly `messages` about the configuration, in this order, and refuses it if one
/// of them is an error. With marks, each message is about the line of its own mark; without marks, a
/// message is compared as it is.
#[track_caller]
fn assert_says(builder: Builder, messages: &[&str]) {
    let nginx = builder.build();
    assert_nginx_says(&nginx, messages);
}

#[track_caller]
fn assert_nginx_says(nginx: &Nginx, messages: &[&str]) {
    let (ok, output) = nginx.test();
    let prefix = nginx.prefix().to_str().expect("a temporary directory in UTF-8");
    let main = nginx.prefix().join("nginx.conf");
    let text = fs::read_to_string(&main).expect("the configuration");
    let places = marks(nginx.prefix());
    assert!(
        places.is_empty() || places.len() == messages.len(),
        "{} marks in\n{text}",
        places.len()
    );
    let expected: Vec<String> = messages
        .iter()
        .enumerate()
        .map(|(i, message)| {
            let place = places.get(i).map(|place| format!(" in {place}")).unwrap_or_default();
            message.replace("%PREFIX%", prefix) + &place
        })
        .collect();
    let refused = messages.iter().any(|message| message.starts_with("[emerg]"));
    assert_eq!(said(&output), expected, "about\n{text}");
    assert_eq!(ok, !refused, "{output}about\n{text}");
    let log = nginx.error_log();
    assert!(!output.contains(KEY) && !log.contains(KEY), "the key is told: {output}{log}");
}

/// nginx's messages, without the last ones, which it always prints.
fn said(output: &str) -> Vec<&str> {
    let end = |line: &&str| line.starts_with("nginx: configuration file ") || is_syntax_ok(line);
    output
        .lines()
        .filter(|line| !end(line))
        .map(|line| line.strip_prefix("nginx: ").unwrap_or(line))
        .collect()
}

fn is_syntax_ok(line: &str) -> bool {
    line.starts_with("nginx: the configuration file ") && line.ends_with(" syntax is ok")
}

/// The places of all marks, as nginx writes them: those of nginx.conf first.
fn marks(prefix: &Path) -> Vec<String> {
    let others = ["a.conf", "b.conf", "sub/c.conf"].map(|name| prefix.join(name));
    iter::once(prefix.join("nginx.conf"))
        .chain(others)
        .filter_map(|file| Some((fs::read_to_string(&file).ok()?, file)))
        .flat_map(|(text, file)| {
            let marked = |(i, line): (usize, &str)| line.ends_with(HERE).then_some(i + 1);
            let lines: Vec<usize> = text.lines().enumerate().filter_map(marked).collect();
            lines.into_iter().map(move |line| format!("{}:{line}", file.display()))
        })
        .collect()
}

/// Runs only `nginx -t`, with a complete configuration.
fn nginx_t(prefix: &Path, conf: &Path) -> (bool, String) {
    let output = Command::new(from_env("TEST_NGINX_BINARY"))
        .arg("-t")
        .arg("-p")
        .arg(prefix)
        .arg("-c")
        .arg(conf)
        .arg("-e")
        .arg(prefix.join("error.log"))
        .output()
        .expect("nginx runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn from_env(name: &str) -> PathBuf {
    let path = env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run ci/test"));
    std::path::absolute(path).expect("a path")
}

#[test]
fn a_wrong_line_in_a_target_is_refused_with_what_it_must_be() {
    let number = |name: &str, value: &str, most: &str| {
        format!(
            "invalid value \"{value}\" in \"{name}\" directive, \
             it must be a number from 1 to {most}"
        )
    };
    let time = |name: &str, value: &str, above: &str| {
        format!(
            "invalid value \"{value}\" in \"{name}\" directive, \
             it must be a time{above} like \"1s\" or \"500ms\""
        )
    };
    let flag = |name: &str, value: &str| {
        format!("invalid value \"{value}\" in \"{name}\" directive, it must be \"on\" or \"off\"")
    };
    let queue_size = |value: &str| {
        format!(
            "invalid parameter \"{value}\" in \"queue\" directive, \
             it must be a size like \"size=16m\""
        )
    };
    let rate = |value: &str| {
        format!(
            "invalid value \"{value}\" in \"rate\" directive, \
             it must be \"auto\" or a rate like \"10r/s\" or \"300r/m\""
        )
    };
    let repeat = |value: &str| {
        format!(
            "invalid value \"{value}\" in \"repeat\" directive, it must be \"off\" or a number a minute \
             like \"20/m\""
        )
    };
    let spool = |value: &str, must: &str| {
        format!("invalid parameter \"{value}\" in \"spool\" directive, it must be {must}")
    };
    let count = |name: &str| format!("invalid number of arguments in \"{name}\" directive");
    let ours = |name: &str| {
        format!("\"header\" directive cannot change \"{name}\", which the module sets")
    };
    let variable =
        |name: &str| format!("\"{name}\" in \"tirreno_target\" cannot contain variables or \"$\"");
    let no_type = |pattern: &str| {
        format!(
            "no event type matches \"{pattern}\" in \"events\" directive, the types are {TYPES}, \
             and the levels audit-api, audit-content, audit-permissions, audit-cli"
        )
    };
    let prefix = |value: &str, family: &str, most: &str| {
        format!(
            "invalid value \"{value}\" in \"ip_mask\" directive, \
             the prefix of {family} addresses must be a number from 0 to {most}"
        )
    };
    let required = |name: &str| {
        format!(
            "\"{name}\" in \"omit\" directive is required by Tirreno, \
             see \"ip_mask\" and \"query\" for less of it"
        )
    };
    let unknown = |name: &str| format!("unknown directive \"{name}\" in \"tirreno_target\"");
    let ca = |file: &str, what: &str| {
        format!(
            "\"%PREFIX%/{file}\" cannot be used as \"ssl_trusted_certificate\": {what}, \
             it must hold certificates of authorities in PEM format"
        )
    };
    let rows: &[(&str, String)] = &[
        // Numbers.
        ("queue 0;", number("queue", "0", "10000000")),
        ("queue 1k;", number("queue", "1k", "10000000")),
        ("queue -1;", number("queue", "-1", "10000000")),
        ("queue 10000001;", number("queue", "10000001", "10000000")),
        ("queue 99999999999999999999;", number("queue", "99999999999999999999", "10000000")),
        ("batch_size 0;", number("batch_size", "0", "10000000")),
        ("batch_size many;", number("batch_size", "many", "10000000")),
        ("connections 0;", number("connections", "0", "64")),
        ("connections 65;", number("connections", "65", "64")),
        ("connections two;", number("connections", "two", "64")),
        // Sizes.
        ("queue 10 16m;", queue_size("16m")),
        ("queue 10 size=;", queue_size("size=")),
        ("queue 10 size=0;", queue_size("size=0")),
        ("queue 10 size=16mb;", queue_size("size=16mb")),
        ("queue 10 size=-1;", queue_size("size=-1")),
        ("queue 10 size=9999999999999g;", queue_size("size=9999999999999g")),
        // Times.
        ("interval soon;", time("interval", "soon", "")),
        ("interval 1y;", time("interval", "1y", "")),
        ("interval -1s;", time("interval", "-1s", "")),
        ("interval \"\";", time("interval", "", "")),
        ("shutdown_timeout 1.5s;", time("shutdown_timeout", "1.5s", "")),
        ("timeout 0;", time("timeout", "0", " above 0")),
        ("timeout 5sec;", time("timeout", "5sec", " above 0")),
        // What is repeated.
        ("repeat 0/m;", repeat("0/m")),
        ("repeat 20;", repeat("20")),
        ("repeat 20/s;", repeat("20/s")),
        ("repeat -1/m;", repeat("-1/m")),
        // Rates.
        ("rate 10;", rate("10")),
        ("rate 0r/s;", rate("0r/s")),
        ("rate 10r/h;", rate("10r/h")),
        ("rate -1r/s;", rate("-1r/s")),
        ("rate 0.5r/s;", rate("0.5r/s")),
        ("rate off;", rate("off")),
        // Flags and other words.
        ("accept_200 yes;", flag("accept_200", "yes")),
        ("resend yes;", flag("resend", "yes")),
        ("ssl_verify 1;", flag("ssl_verify", "1")),
        ("ssl_verify ON;", flag("ssl_verify", "ON")),
        (
            "type http;",
            "invalid value \"http\" in \"type\" directive, it must be \"tirreno\", \"file\", \
             \"console\", \"syslog\", \"tcp\" or \"none\""
                .into(),
        ),
        ("events login;", no_type("login")),
        ("events account_* page-*;", no_type("page-*")),
        ("events !;", no_type("!")),
        ("events \"\";", no_type("")),
        // Headers.
        ("header Api-Key %KEY%;", ours("Api-Key")),
        ("header content-length 5;", ours("content-length")),
        ("header X-Request-ID 5;", ours("X-Request-ID")),
        (
            "header X-Gateway: %KEY%;",
            "invalid name of \"X-Gateway:\" in \"header\" directive, \
             it must be a header's name without \":\""
                .into(),
        ),
        (
            "header X-Gateway \"%KEY%\n\";",
            "invalid value of \"X-Gateway\" in \"header\" directive, \
             it must be printable ASCII characters"
                .into(),
        ),
        // Certificates.
        (
            "ssl_trusted_certificate none.pem;",
            "\"%PREFIX%/none.pem\" cannot be read: No such file or directory (os error 2)".into(),
        ),
        (
            "ssl_trusted_certificate %PREFIX%;",
            "\"%PREFIX%\" cannot be read: Is a directory (os error 21)".into(),
        ),
        ("ssl_trusted_certificate text.pem;", ca("text.pem", "it holds no certificate")),
        ("ssl_trusted_certificate cut.pem;", ca("cut.pem", "it is no valid PEM file")),
        // Privacy.
        ("ip_mask 33 56;", prefix("33", "IPv4", "32")),
        ("ip_mask -1 56;", prefix("-1", "IPv4", "32")),
        ("ip_mask /24 56;", prefix("/24", "IPv4", "32")),
        ("ip_mask 24 129;", prefix("129", "IPv6", "128")),
        ("ip_mask 24 300;", prefix("300", "IPv6", "128")),
        ("ip_mask 24;", count("ip_mask")),
        ("ip_mask 24 56 64;", count("ip_mask")),
        ("ip_mask 24 56;\nip_mask 24 56;", "\"ip_mask\" directive is duplicate".into()),
        ("query no;", flag("query", "no")),
        (
            "omit userName agent;",
            format!(
                "unknown parameter \"agent\" in \"omit\" directive, it must be one of {PARAMETERS}"
            ),
        ),
        ("omit userName ipAddress;", required("ipAddress")),
        ("omit url;", required("url")),
        ("omit eventTime;", required("eventTime")),
        (
            "omit payload payload;",
            "duplicate parameter \"payload\" in \"omit\" directive".into(),
        ),
        ("omit;", count("omit")),
        ("hash_user;", count("hash_user")),
        ("hash_user %KEY%;", "\"hash_user\" names no file below \"%PREFIX%/\"".into()),
        (
            "hash_user %PREFIX%/none.key;",
            "\"%PREFIX%/none.key\" cannot be read: No such file or directory (os error 2)".into(),
        ),
        ("hash_user empty.key;", "\"hash_user\" is empty, it must hold the key for users".into()),
        (
            "hash_user two.key;",
            "\"hash_user\" must hold the key for users and nothing else, in one line without spaces"
                .into(),
        ),
        // Variables.
        ("header X-Gateway $http_x_gateway;", variable("header")),
        ("queue $queue;", variable("queue")),
        ("interval ${interval}s;", variable("interval")),
        // Directives that are unknown, incomplete or repeated.
        ("api-key %KEY%;", unknown("api-key")),
        ("tirreno on;", unknown("tirreno")),
        ("spool;", count("spool")),
        ("spool text.pem;", "the spool's path \"%PREFIX%/text.pem\" is no directory".into()),
        ("spool a max_size=1k;", spool("max_size=1k", "a size from 1m on, like \"max_size=1g\"")),
        ("spool \"\";", "\"spool\" names no directory".into()),
        (
            "events account_* !account_*;",
            "\"events\" directive leaves no event for the target".into(),
        ),
        (
            "spool a max_age=1y max_size=1g max_age=1M;",
            "duplicate parameter \"max_age=1M\" in \"spool\" directive".into(),
        ),
        ("spool a max_age=0;", spool("max_age=0", "a time like \"max_age=7d\"")),
        (
            "spool a when_full=panic;",
            spool(
                "when_full=panic",
                "\"max_size=\", \"max_age=\", or \"when_full=\" with \"drop_oldest\" or \
                 \"drop_newest\"",
            ),
        ),
        ("connections 2 3;", count("connections")),
        ("connections;", count("connections")),
        ("queue 10 size=1m 3;", count("queue")),
        ("header X-Gateway;", count("header")),
        ("header X-Gateway: %KEY% more;", count("header")),
        ("events;", count("events")),
        ("include;", count("include")),
        ("events * {", "unexpected \"{\"".into()),
        ("url http://127.0.0.1:9/;", "\"url\" directive is duplicate".into()),
        ("api_key %KEY%;", "\"api_key\" directive is duplicate".into()),
        ("api_key_file key;", "\"api_key\" and \"api_key_file\" are both set, remove one".into()),
        ("timeout 1s;\ntimeout 1s;", "\"timeout\" directive is duplicate".into()),
        ("queue 5;\nqueue 5;", "\"queue\" directive is duplicate".into()),
        ("type none;\ntype none;", "\"type\" directive is duplicate".into()),
    ];
    for (line, message) in rows {
        let message = format!("[emerg] {message}");
        assert_says(configuration(&target(&format!("{line} {HERE}"))), &[&message]);
    }
}

#[test]
fn a_parameter_of_another_type_is_refused_where_it_stands() {
    let file = "type file; path %PREFIX%/audit.log;";
    let rows = [
        (file, "url http://127.0.0.1:9/;", "url", "file"),
        (file, "spool spool;", "spool", "file"),
        (file, "server 127.0.0.1:9;", "server", "file"),
        (file, "ssl_verify off;", "ssl_verify", "file"),
        ("type console;", "path audit.log;", "path", "console"),
        ("type syslog; server 127.0.0.1;", "out stdout;", "out", "syslog"),
        ("type tcp; server 127.0.0.1:9;", "tag nginx;", "tag", "tcp"),
        ("type tcp; server 127.0.0.1:9;", "max_size 1m;", "max_size", "tcp"),
        (file, "framing newline;", "framing", "file"),
        ("type console;", "max_message_size 8k;", "max_message_size", "console"),
        ("url http://127.0.0.1:9/; api_key %KEY%;", "format json;", "format", "tirreno"),
    ];
    for (others, line, name, kind) in rows {
        let message =
            format!("[emerg] \"{name}\" does not belong into a target of type \"{kind}\"");
        for lines in [format!("{others}\n{line} {HERE}"), format!("{line} {HERE}\n{others}")] {
            assert_says(configuration(&format!("tirreno_target {{\n{lines}\n}}")), &[&message]);
        }
    }
}

#[test]
fn a_wrong_line_in_a_stream_target_is_refused_with_what_it_must_be() {
    let value = |name: &str, value: &str, must: &str| {
        format!("invalid value \"{value}\" in \"{name}\" directive, it must be {must}")
    };
    let size = "a size with a unit, \"k\", \"m\" or \"g\", like \"100m\", or \"off\"";
    let age = "a time with a unit, \"s\", \"m\", \"h\", \"d\", \"w\", \"M\" or \"y\", like \"1d\", \
               or \"off\"";
    let server = "like \"host:port\" or \"unix:/path\"";
    let tag = "1 to 48 printable ASCII characters, no space";
    let facilities = "one of kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, \
                      authpriv, ftp, ntp, audit, alert, clock, local0, local1, local2, local3, \
                      local4, local5, local6, local7";
    let severities = "one of emerg, alert, crit, error, warn, notice, info, debug";
    let rows = [
        ("file", "max_size 100;", value("max_size", "100", size)),
        ("file", "max_size 0m;", value("max_size", "0m", size)),
        ("file", "max_size much;", value("max_size", "much", size)),
        ("file", "rotate 1;", value("rotate", "1", age)),
        ("file", "rotate daily;", value("rotate", "daily", age)),
        ("file", "max_age 30;", value("max_age", "30", age)),
        ("file", "max_age 0d;", value("max_age", "0d", age)),
        (
            "file",
            "max_backups -1;",
            value("max_backups", "-1", "a number up to 1000000; 0 keeps all"),
        ),
        ("file", "compress gzip;", value("compress", "gzip", "\"on\" or \"off\"")),
        ("file", "path %PREFIX%;", value("path", "%PREFIX%", "a file, not a directory")),
        ("file", "path audit/;", value("path", "audit/", "a file, not a directory")),
        ("file", "path audit/.;", value("path", "audit/.", "a file, not a directory")),
        ("file", "path audit/..;", value("path", "audit/..", "a file, not a directory")),
        (
            "file",
            "path audit.gz;",
            value("path", "audit.gz", "a name without \".gz\", which compressed backups end with"),
        ),
        ("console", "out file;", value("out", "file", "\"stdout\" or \"stderr\"")),
        ("syslog", "server 127.0.0.1:0;", value("server", "127.0.0.1:0", server)),
        ("syslog", "server unix:log;", value("server", "unix:log", server)),
        ("tcp", "server ::1:9;", value("server", "::1:9", server)),
        ("tcp", "transport http;", value("transport", "http", "\"udp\", \"tcp\" or \"tls\"")),
        (
            "tcp",
            "framing crlf;",
            value("framing", "crlf", "\"octet-counting\", \"newline\" or \"nul\""),
        ),
        (
            "syslog",
            "max_message_size 500;",
            value("max_message_size", "500", "a size from 1k on, like \"8k\""),
        ),
        ("syslog", "facility local8;", value("facility", "local8", facilities)),
        ("syslog", "severity warning;", value("severity", "warning", severities)),
        ("syslog", "tag \"a b\";", value("tag", "a b", tag)),
        ("file", "path;", "invalid number of arguments in \"path\" directive".into()),
        (
            "file",
            "path /var/log/$host;",
            "\"path\" in \"tirreno_target\" cannot contain variables or \"$\"".into(),
        ),
        (
            "file",
            // An OPTION without a value may be a key in the wrong place.
            "format json %KEY%;",
            "invalid parameter in \"format\" directive, it must be OPTION=VALUE".into(),
        ),
        (
            "file",
            "format json hash_key_file=empty.key;",
            "\"hash_key_file\" is empty, it must hold the key of session ids".into(),
        ),
    ];
    for (kind, line, message) in rows {
        let http = format!("tirreno_target {{\ntype {kind};\n{line} {HERE}\n}}");
        assert_says(configuration(&http), &[&format!("[emerg] {message}")]);
    }
}

#[test]
fn a_stream_target_that_lacks_something_is_refused_where_it_begins() {
    let rows = [
        (
            "type file;",
            "target \"audit\" has no \"path\", add it like \"path /var/log/audit/nginx.log;\"",
        ),
        ("type tcp;", "target \"audit\" has no \"server\", add it like \"server HOST:PORT;\""),
        (
            "type tcp; server localhost;",
            "the \"server\" of target \"audit\" has no port, add it like \"localhost:601\"",
        ),
        (
            "type tcp; server unix:/dev/log;",
            "target \"audit\" needs a connection: \"transport\" must be \"tcp\" or \"tls\", and \
             \"server\" like \"HOST:PORT\"",
        ),
        (
            "type tcp; server localhost:9; transport udp;",
            "target \"audit\" needs a connection: \"transport\" must be \"tcp\" or \"tls\", and \
             \"server\" like \"HOST:PORT\"",
        ),
        (
            "type syslog; server unix:/dev/log; transport tcp;",
            "target \"audit\" has a local socket as its \"server\": remove \"transport\"",
        ),
        (
            "type syslog; server localhost; framing newline;",
            "target \"audit\" sends each message as a datagram: \"framing\" needs \"transport\" \"tcp\" or \
             \"tls\"",
        ),
        (
            "type syslog; server unix:/dev/log; framing newline;",
            "target \"audit\" sends each message as a datagram: \"framing\" needs \"transport\" \"tcp\" or \
             \"tls\"",
        ),
        (
            "type syslog; server localhost; ssl_verify off;",
            "target \"audit\" has a parameter \"ssl_...\", which needs \"transport tls\"",
        ),
    ];
    for (lines, message) in rows {
        let http = format!("tirreno_target audit {{ {HERE}\n{lines}\n}}");
        assert_says(configuration(&http), &[&format!("[emerg] {message}")]);
    }
}

#[test]
fn what_belongs_to_tls_needs_https() {
    for line in ["ssl_verify on;", "ssl_trusted_certificate ca.pem;", "ssl_certificate ca.pem;"] {
        let http = format!(
            "tirreno_target {{ {HERE}\nurl http://127.0.0.1:1/sensor/; api_key %KEY%; {line}\n}}"
        );
        let message = "[emerg] target \"tirreno\" has a parameter \"ssl_...\", which needs a \"url\" that \
                       begins with \"https://\"";
        assert_says(configuration(&http), &[message]);
    }
}

#[test]
fn a_file_belongs_to_one_target() {
    let target = |name: &str, path: &str, end: &str| {
        format!("tirreno_target {name} {{ type file; path {path}; }}{end}")
    };
    for other in ["a.log", "%PREFIX%/a.log", "logs/../a.log"] {
        let http = format!("{}\n{}", target("a", "a.log", ""), target("b", other, HERE));
        let message = "[emerg] target \"b\" has the same \"path\" as target \"a\"";
        assert_says(configuration(&http), &[message]);
    }
}

#[test]
fn a_prefix_may_be_relative() {
    let http = "tirreno_target a { type file; path a.log; }
                tirreno_target b { type file; path %PREFIX%/a.log; }";
    let nginx = configuration(http).build();
    nginx.test();
    // A relative prefix that is valid in any working directory: the root is its own parent.
    let prefix = Path::new(&"../".repeat(64)).join(nginx.prefix().strip_prefix("/").unwrap());
    let (ok, output) = nginx_t(&prefix, &nginx.prefix().join("nginx.conf"));
    assert!(!ok && output.contains("has the same \"path\" as target \"a\""), "{output}");
}

#[test]
fn a_file_is_no_symbolic_link() {
    let http = format!("tirreno_target {{\ntype file;\npath a.log; {HERE}\n}}");
    let nginx = configuration(&http).build();
    symlink("logs/a.log", nginx.prefix().join("a.log")).unwrap();
    let message = "[emerg] invalid value \"a.log\" in \"path\" directive, it must be a file, not a \
                   symbolic link";
    assert_nginx_says(&nginx, &[message]);
}

#[test]
fn a_file_in_a_directory_that_does_not_exist_is_refused_where_it_stands() {
    let http = format!("tirreno_target audit {{\ntype file;\npath none/audit.log; {HERE}\n}}");
    let message = "[emerg] tirreno: target \"audit\": the directory \"%PREFIX%/none\" does not \
                   exist, make it";
    assert_says(configuration(&http), &[message]);
}

#[test]
fn a_sessions_token_is_a_user_only_where_nothing_is_recorded() {
    let site = |state: &str| {
        let server = format!(
            "tirreno {state};\ntirreno_session cookie:uid; {}\ntirreno_user verified cookie:uid;",
            if state == "on" { HERE } else { "" }
        );
        configuration("%TARGET%").server(&server)
    };
    let message = "[emerg] \"tirreno_user\" or \"tirreno_param\" puts the session's token into events, \
                   which \"tirreno_session\" names: take another value, or a part of it by a regular \
                   expression with a group,";
    assert_says(site("on"), &[message]);
    assert_says(site("off"), &[]);
}

#[test]
fn a_console_of_a_daemon_is_warned_about() {
    let http = "tirreno_target audit { type console; }";
    assert_says(configuration(http), &[]);
    let message = "[warn] tirreno: target \"audit\" of type \"console\" writes to nowhere without \
                   \"daemon off\" here or behind \"-g\",";
    let http = format!("tirreno_target audit {{ {HERE}\ntype console; }}");
    assert_says(configuration(&http).daemon(), &[message]);
    // That is the error log of a daemon.
    assert_says(configuration("tirreno_target audit { type console; out stderr; }").daemon(), &[]);
}

#[test]
fn a_url_that_is_not_a_sensors_is_refused_and_not_repeated() {
    const NOT_HTTP: &str = "it must be like https://host/sensor/ or http://host:8080/sensor/";
    const PORT: &str = "its port must be a number from 1 to 65535";
    const QUERY: &str = "it must not have a query or fragment";
    const PATH: &str = "its path must end with \"/sensor/\"";
    const CREDENTIALS: &str = "it must not hold a user or password, use \"header\" instead";
    let rows = [
        ("\"\"", NOT_HTTP),
        ("127.0.0.1:9", NOT_HTTP),
        ("tirreno.example.com/sensor/", NOT_HTTP),
        ("//tirreno.example.com/sensor/", NOT_HTTP),
        ("/sensor/", NOT_HTTP),
        ("ftp://127.0.0.1/sensor/", NOT_HTTP),
        ("unix:/run/tirreno.sock", NOT_HTTP),
        ("http:///sensor/", NOT_HTTP),
        ("http://::1/sensor/", NOT_HTTP),
        ("\"http://127.0.0.1/a b/sensor/\"", NOT_HTTP),
        ("http://127.0.0.1:/sensor/", PORT),
        ("http://127.0.0.1:0/sensor/", PORT),
        ("http://127.0.0.1:http/sensor/", PORT),
        ("http://[::1]:65536/", PORT),
        ("http://127.0.0.1/sensor", PATH),
        ("http://127.0.0.1/sensor/index.php", PATH),
        ("http://127.0.0.1/tirreno/", PATH),
        ("http://127.0.0.1/mysensor/", PATH),
        ("http://127.0.0.1/sensor/?key=%KEY%", QUERY),
        ("http://127.0.0.1/sensor/#%KEY%", QUERY),
        ("http://user:%KEY%@127.0.0.1/sensor/", CREDENTIALS),
        ("http://%KEY%@127.0.0.1/sensor/", CREDENTIALS),
    ];
    for (url, reason) in rows {
        let message = format!("[emerg] invalid value in \"url\" directive, {reason}");
        let http = format!("tirreno_target {{\napi_key %KEY%;\nurl {url}; {HERE}\n}}");
        assert_says(configuration(&http), &[&message]);
    }
    let variable = "[emerg] \"url\" in \"tirreno_target\" cannot contain variables or \"$\"";
    let http = format!("tirreno_target {{\nurl http://$host/sensor/; {HERE}\n}}");
    assert_says(configuration(&http), &[variable]);
}

#[test]
fn a_key_that_is_none_is_refused_and_not_repeated() {
    let no_file = "[emerg] \"api_key_file\" names no file below \"%PREFIX%/\"";
    let empty = |name: &str| format!("[emerg] \"{name}\" is empty, it must hold the API key");
    let one_line = |name: &str| {
        format!(
            "[emerg] \"{name}\" must hold the API key and nothing else, in one line without spaces"
        )
    };
    let rows = [
        ("api_key \"\"", empty("api_key")),
        ("api_key \" \"", empty("api_key")),
        ("api_key \"%KEY% %KEY%\"", one_line("api_key")),
        ("api_key %KEY%é", one_line("api_key")),
        (
            "api_key $%KEY%",
            "[emerg] \"api_key\" in \"tirreno_target\" cannot contain variables or \"$\", \
             put the key into a file for \"api_key_file\""
                .into(),
        ),
        (
            "api_key %KEY% %KEY%",
            "[emerg] invalid number of arguments in \"api_key\" directive".into(),
        ),
        ("api_key_file empty.key", empty("api_key_file")),
        ("api_key_file two.key", one_line("api_key_file")),
        ("api_key_file wide.key", one_line("api_key_file")),
        (
            "api_key_file none.key",
            "[emerg] \"%PREFIX%/none.key\" cannot be read: No such file or directory (os error 2)"
                .into(),
        ),
        // The key itself in the place of its file's name.
        ("api_key_file %KEY%", no_file.into()),
        ("api_key_file sub/%KEY%==", no_file.into()),
        (
            "api_key_file %PREFIX%/none.key",
            "[emerg] \"%PREFIX%/none.key\" cannot be read: No such file or directory (os error 2)"
                .into(),
        ),
        (
            "api_key_file logs",
            "[emerg] \"%PREFIX%/logs\" cannot be read: Is a directory (os error 21)".into(),
        ),
        (
            "api_key_file $key",
            "[emerg] \"api_key_file\" in \"tirreno_target\" cannot contain variables or \"$\""
                .into(),
        ),
        (
            "api_key_file key; api_key %KEY%",
            "[emerg] \"api_key\" and \"api_key_file\" are both set, remove one".into(),
        ),
    ];
    for (key, message) in rows {
        let http = format!("tirreno_target {{\nurl http://127.0.0.1:9/;\n{key}; {HERE}\n}}");
        let nginx = configuration(&http).build();
        // In UTF-16, as some editors on other systems save it.
        let wide: Vec<u8> = KEY.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let file = nginx.prefix().join("wide.key");
        fs::write(&file, [&[0xff, 0xfe], &*wide].concat()).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert_nginx_says(&nginx, &[&message]);
    }
}

#[test]
fn a_key_file_that_everyone_can_read_is_warned_about_until_chmod() {
    let http = format!("tirreno_target {{\nurl http://127.0.0.1:9/;\napi_key_file key; {HERE}\n}}");
    let nginx = configuration(&http).build();
    let key = nginx.prefix().join("key");
    let chmod = |mode| fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
    for mode in [0o644, 0o604, 0o666] {
        chmod(mode);
        let warning = "[warn] \"%PREFIX%/key\" holds the API key and everyone can read it, \
             run \"chmod 600 %PREFIX%/key\"";
        assert_nginx_says(&nginx, &[warning]);
    }
    fs::write(nginx.prefix().join("nginx.conf"), {
        let text = fs::read_to_string(nginx.prefix().join("nginx.conf")).unwrap();
        text.replace(HERE, "")
    })
    .unwrap();
    for mode in [0o600, 0o400, 0o640] {
        chmod(mode);
        assert_nginx_says(&nginx, &[]);
    }
}

#[test]
fn a_configuration_with_a_key_that_everyone_can_read_is_warned_about() {
    let http = format!("tirreno_target {{\nurl http://127.0.0.1:9/;\napi_key %KEY%; {HERE}\n}}");
    let nginx = configuration(&http).build();
    let file = nginx.prefix().join("nginx.conf");
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let warning = "[warn] \"%PREFIX%/nginx.conf\" holds the API key and everyone can read it, put the key into \
                   a file for \"api_key_file\", or run \"chmod 600 %PREFIX%/nginx.conf\"";
    assert_nginx_says(&nginx, &[warning]);
}

#[test]
fn what_others_can_read_or_change_on_the_way_is_warned_about() {
    let plain = "[warn] \"url\" sends events and the API key to another host over plain http, write \"https://\",";
    let udp = "[warn] \"server\" is another host and gets its messages over UDP, which loses some, and shows them \
               to everybody on the way, add \"transport tls\",";
    for url in
        ["http://tirreno.example.com/", "http://192.0.2.1:8080/sensor/", "http://[2001:db8::1]/"]
    {
        let http = format!("tirreno_target {{\napi_key %KEY%;\nurl {url}; {HERE}\n}}");
        assert_says(configuration(&http), &[plain]);
    }
    for url in ["http://localhost/", "http://127.9.9.9/", "http://[::1]/", "http://LocalHost:8080/"]
    {
        assert_says(configuration(&format!("tirreno_target {{ api_key %KEY%; url {url}; }}")), &[]);
    }
    let lookup = "[warn] \"url\" sends sessions' tokens to another host over plain http, write \"https://\",";
    for (url, messages) in [
        ("http://chat.example.com/me; # here", &[lookup][..]),
        ("http://127.0.0.1:8065/me;", &[]),
        ("http://[::1]/me;", &[]),
    ] {
        let http = format!("tirreno_identity chat {{\nurl {url}\nmap id userName;\n}}");
        assert_says(configuration(&http), messages);
    }
    let tls = "ssl_trusted_certificate ca.pem; url https://tirreno.example.com/; api_key %KEY%;";
    let tcp = "type tcp; server siem.example.com:6514; transport tls;";
    for target in [tls, tcp] {
        let http = format!("tirreno_target {{ {target}\nssl_verify off; {HERE}\n}}");
        assert_says(configuration(&http), &[UNVERIFIED]);
    }
    for server in ["siem.example.com", "192.0.2.1:514", "[2001:db8::1]"] {
        let http = format!("tirreno_target {{ type syslog;\nserver {server}; {HERE}\n}}");
        assert_says(configuration(&http), &[udp]);
    }
    for server in ["127.0.0.1", "localhost:514", "unix:/dev/log"] {
        let http = format!("tirreno_target {{ type syslog; server {server}; }}");
        assert_says(configuration(&http), &[]);
    }
}

/// A server with TLS that knows the authority of clients, for [`with_certificate`].
const TLS: &str = "listen %PORT% ssl; ssl_certificate server.crt; ssl_certificate_key server.key; \
    ssl_client_certificate ca.pem;";

fn with_certificate(builder: Builder) -> Builder {
    let (certificate, key) = Authority::new("test").localhost().pem();
    builder.file("server.crt", &certificate).file("server.key", &key)
}

#[test]
fn a_status_for_everybody_is_warned_about() {
    let warning = "[warn] everybody can ask for the status, add \"allow\" and \"deny all\", or \"auth_basic\",";
    let status = |server: &str, location: &str| {
        format!(
            "%TARGET%\nserver {{ {server} location = /s {{ {location}\ntirreno_status; {HERE}\n}} }}"
        )
    };
    for (server, location) in [
        ("listen %PORT%;", ""),
        ("listen [::]:%PORT%;", ""),
        ("listen 127.0.0.1:%PORT%; listen *:%PORT1%;", ""),
        ("listen %PORT%; auth_basic x; auth_basic_user_file key;", "auth_basic off;"),
        // Clients without a certificate get in, by the other address, or because it is optional.
        (&*format!("{TLS} ssl_verify_client on; listen %PORT1%;"), ""),
        (&*format!("{TLS} ssl_verify_client optional;"), ""),
        // The condition applies to the requests of another location.
        ("listen %PORT%; location /a { if ($arg_key != x) { return 403; } }", ""),
    ] {
        let builder = with_certificate(configuration(&status(server, location)));
        assert_says(builder, &[warning]);
    }
    for (server, location) in [
        ("listen %PORT%;", "allow 127.0.0.1; deny all;"),
        ("listen %PORT%;", "allow ::1; deny all;"),
        ("listen %PORT%; deny 192.0.2.1;", ""),
        ("listen %PORT%;", "auth_basic x; auth_basic_user_file key;"),
        ("listen %PORT%;", "internal;"),
        ("listen 127.0.0.1:%PORT%;", ""),
        ("listen unix:%PREFIX%/socket;", ""),
        ("listen %PORT%;", "if ($arg_key != x) { return 403; }"),
        (&*format!("{TLS} ssl_verify_client on;"), ""),
        (&*format!("{TLS} ssl_verify_client on; listen 127.0.0.1:%PORT1%;"), ""),
    ] {
        let http = status(server, location).replace(HERE, "");
        assert_says(with_certificate(configuration(&http)), &[]);
    }
}

#[test]
fn a_file_of_rules_that_is_included_twice_on_one_level_is_warned_about() {
    let warning = "[warn] this file is included twice on one level, remove one \"include\" of it";
    let rules = "tirreno_event account_login POST /login;\ntirreno_event page_edit POST /posts;\n";
    let include = |levels: &str| format!("%TARGET%\ntirreno on; tirreno_anonymous on; {levels}");
    let twice = include("server { include rules.conf; include rules.conf; }");
    let place = format!("{warning} in %PREFIX%/rules.conf:1");
    assert_says(configuration(&twice).file("rules.conf", rules), &[&place]);
    for levels in [
        "server { include rules.conf; }",
        "server { include rules.conf; } server { server_name b; include rules.conf; }",
        "server { include rules.conf; location / { include rules.conf; } }",
    ] {
        assert_says(configuration(&include(levels)).file("rules.conf", rules), &[]);
    }
}

#[test]
fn a_user_without_tirreno_on_is_warned_about() {
    let warning = "[warn] \"tirreno_user\" does nothing without \"tirreno on\", add it,";
    for http in [
        format!("tirreno_user verified $remote_user; {HERE}\nserver {{ }}"),
        format!("server {{\ntirreno_user verified $remote_user; {HERE}\n}}"),
        format!(
            "server {{\ntirreno_user verified $remote_user; {HERE}\nlocation / {{ tirreno off; }} }}"
        ),
        format!(
            "server {{ location / {{\ntirreno_user verified $remote_user; {HERE}\n}} location /a {{ }} }}"
        ),
    ] {
        assert_says(configuration(&format!("%TARGET%\n{http}")), &[warning]);
    }
    for http in [
        "tirreno_user verified $remote_user; server { location / { tirreno on; } location /a { } }",
        "server { tirreno_user verified $remote_user; location / { tirreno $arg_a; } }",
        // An administrator who writes this knows the consequence.
        "server { tirreno off; tirreno_user verified $remote_user; location / { } }",
        "tirreno off; tirreno_user verified $remote_user; server { location / { } }",
    ] {
        assert_says(configuration(&format!("%TARGET%\n{http}")), &[]);
    }
}

#[test]
fn a_key_for_users_that_is_short_or_public_is_warned_about() {
    let long = "%KEY%".repeat(4);
    let rows: [(&str, u32, &[&str]); 3] = [
        (&long, 0o600, &[]),
        (
            "%KEY%",
            0o600,
            &["[warn] the key of \"hash_user\" is shorter than 32 characters, \
               make one with \"openssl rand -hex 32\""],
        ),
        (
            &long,
            0o644,
            &["[warn] \"%PREFIX%/user.key\" holds the key for users and everyone can read it, \
               run \"chmod 600 %PREFIX%/user.key\""],
        ),
    ];
    for (key, mode, messages) in rows {
        let here = if messages.is_empty() { "" } else { HERE };
        let nginx = configuration(&target(&format!("hash_user user.key; {here}")))
            .file("user.key", &format!("{key}\n"))
            .build();
        let file = nginx.prefix().join("user.key");
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        assert_nginx_says(&nginx, messages);
    }
}

#[test]
fn white_space_after_the_key_in_its_file_does_no_harm() {
    for end in ["", "\n", "\r\n", " \t\n\n"] {
        let http = "tirreno_target { url http://127.0.0.1:9/; api_key_file end.key; }";
        assert_says(configuration(http).file("end.key", &format!("%KEY%{end}")), &[]);
    }
}

#[test]
fn a_target_that_lacks_something_is_refused_where_it_begins() {
    let rows = [
        ("", "target \"tirreno\" has no \"url\", add it like \"url https://HOST/sensor/;\""),
        (
            "api_key %KEY%;",
            "target \"tirreno\" has no \"url\", add it like \"url https://HOST/sensor/;\"",
        ),
        (
            "url http://127.0.0.1:9/;",
            "target \"tirreno\" has no API key, add \"api_key_file PATH;\"",
        ),
    ];
    for (lines, message) in rows {
        let message = format!("[emerg] {message}");
        let http = format!("tirreno_target {{ {HERE}\n{lines}\n\n}}");
        assert_says(configuration(&http), &[&message]);
        let http = format!("tirreno_target siem {{ {HERE}\n{lines}\n\n}}");
        let message = message.replace("\"tirreno\"", "\"siem\"");
        assert_says(configuration(&http), &[&message]);
    }
}

#[test]
fn https_needs_certificates_of_authorities() {
    // On a system without certificates of authorities.
    let nginx = |head: &str, line: &str| {
        configuration(&format!(
            "tirreno_target {{ {head}\nurl https://127.0.0.1:9/;\napi_key %KEY%;\n{line}\n}}"
        ))
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "")
    };
    let message = "[emerg] target \"tirreno\" cannot verify certificates: \
         the system has no CA certificates, install the package \"ca-certificates\" or set \
         \"ssl_trusted_certificate\"";
    assert_says(nginx(HERE, ""), &[message]);
    assert_says(nginx(HERE, "ssl_verify on;"), &[message]);
    for line in ["ssl_trusted_certificate ca.pem;", "type none;"] {
        assert_says(nginx("", line), &[]);
    }
    assert_says(nginx("", &format!("ssl_verify off; {HERE}")), &[UNVERIFIED]);
}

#[test]
fn values_in_nginxs_syntax_are_accepted() {
    let lines = [
        "queue 1;",
        "queue 10000000 size=1g;",
        "queue 10 size=16k;",
        "queue 10 size=1M;",
        "queue 10 size=4096;",
        "interval 500ms;",
        "interval 1m;",
        "interval 2;",
        "interval \"1m 30s\";",
        "interval 0;",
        "shutdown_timeout 0;",
        "shutdown_timeout 2s;",
        "repeat 20/m;",
        "repeat off;",
        "timeout 1ms;",
        "timeout 1h;",
        "batch_size 1;",
        "connections 1;",
        "connections 64;",
        "rate auto;",
        "rate 10r/s;",
        "rate 300r/m;",
        "accept_200 on;",
        "accept_200 off;",
        "type tirreno;",
        "events *;",
        "events account_* field_edit;",
        "events !page_view;",
        "events account_* !account_edit;",
        "header X-Gateway %KEY%;",
        "header X-A 1; header X-A \"two words\"; header Host tirreno.example.com;",
        "header X-Empty \"\";",
        "header \"X-Quoted\" 'a;b{c}';",
        "ip_mask 24 56;",
        "ip_mask 0 128; query off; omit userName;",
        "ip_mask 32 0; query on; omit emailAddress httpCode eventType payload;",
    ];
    for line in lines {
        assert_says(configuration(&target(line)), &[]);
    }
    for line in ["type console; repeat 5/m;", "type console; repeat off;"] {
        assert_says(configuration(&format!("tirreno_target {{ {line} }}")), &[]);
    }
    for url in [
        "http://127.0.0.1",
        "http://127.0.0.1/",
        "http://127.0.0.1:8080/sensor/",
        "HTTP://localhost/sensor/",
        "http://[::1]:9/sensor/",
        "\"http://127.0.0.1/a/b/sensor/\"",
        "https://127.0.0.1/sensor/; ssl_trusted_certificate ca.pem; ssl_verify on",
    ] {
        assert_says(configuration(&format!("tirreno_target {{ url {url}; api_key %KEY%; }}")), &[]);
    }
    for name in ["tirreno", "a", "0", "SIEM_2-b.c", &"n".repeat(63)] {
        let http = target("").replace("tirreno_target", &format!("tirreno_target {name}"));
        assert_says(configuration(&http), &[]);
    }
    for size in ["1m", "16m", "2048k", "1g", "4194304"] {
        assert_says(configuration(&format!("{TARGET} tirreno_zone {size};")), &[]);
    }
}

#[test]
fn a_wrong_directive_outside_of_targets_is_refused() {
    let name = |name: &str| {
        format!(
            "invalid target name \"{name}\": at most 63 letters, digits, \"_\", \"-\", \".\", \
             and not \"all\""
        )
    };
    let duplicate = |name: &str| format!("\"{name}\" directive is duplicate");
    let count = |name: &str| format!("invalid number of arguments in \"{name}\" directive");
    let size = |value: &str| {
        format!(
            "invalid value \"{value}\" in \"tirreno_zone\" directive, \
             it must be a size like \"16m\""
        )
    };
    let parameter = |name: &str| {
        format!(
            "unknown parameter \"{name}\" in \"tirreno_param\" directive, \
             it must be one of {PARAMETERS}"
        )
    };
    let same =
        |name: &str| format!("duplicate parameter \"{name}\" in \"tirreno_param\" directive");
    let kind = |name: &str| {
        format!(
            "unknown event type \"{name}\" in \"tirreno_param\" directive, \
             it must be one of {TYPES}"
        )
    };
    let everybodys = |value: &str, directive: &str| {
        format!(
            "invalid value \"{value}\" in \"tirreno_{directive}\" directive, it would be everybody's name: a \
             source is like \"cookie:NAME\", a variable like \"$remote_user\", \"verified\" stands once and \
             first, and \"session\" or \"basic\" in \"user=\" of a rule"
        )
    };
    let sent = "puts the session's token into events, which \"tirreno_session\" names: take another value, or a \
         part of it by a regular expression with a group,";
    let long = "n".repeat(64);
    let handler = "\"tirreno_status\" directive is duplicate, \
         or the location has another handler such as \"proxy_pass\"";
    let block = "directive \"tirreno_target\" has no opening \"{\"";
    let rows: &[(&str, String)] = &[
        // Names of targets.
        ("tirreno_target all { # here\n}", name("all")),
        ("tirreno_target \"\" { # here\n}", name("")),
        ("tirreno_target a/b { # here\n}", name("a/b")),
        ("tirreno_target $name { # here\n}", name("$name")),
        ("tirreno_target tärget { # here\n}", name("tärget")),
        (&format!("tirreno_target {long} {{ # here\n}}"), name(&long)),
        ("tirreno_target a b { # here\n}", count("tirreno_target")),
        ("tirreno_target; # here", block.into()),
        ("tirreno_target siem; # here", block.into()),
        // Directives that are repeated or incomplete.
        ("tirreno_zone 8m; tirreno_zone 8m; # here", duplicate("tirreno_zone")),
        ("tirreno off; tirreno on; # here", duplicate("tirreno")),
        ("tirreno_targets all;\ntirreno_targets all; # here", duplicate("tirreno_targets")),
        ("tirreno_ip $remote_addr;\n\ntirreno_ip $remote_addr; # here", duplicate("tirreno_ip")),
        ("tirreno_anonymous on;\ntirreno_anonymous on; # here", duplicate("tirreno_anonymous")),
        ("tirreno; # here", count("tirreno")),
        ("tirreno on off; # here", count("tirreno")),
        ("tirreno_targets; # here", count("tirreno_targets")),
        ("tirreno_user; # here", count("tirreno_user")),
        ("tirreno_session; # here", count("tirreno_session")),
        ("tirreno_ip; # here", count("tirreno_ip")),
        ("tirreno_param url; # here", count("tirreno_param")),
        ("tirreno_param url a b; # here", count("tirreno_param")),
        ("tirreno_anonymous; # here", count("tirreno_anonymous")),
        ("tirreno_zone; # here", count("tirreno_zone")),
        // Values.
        ("tirreno_zone 1x; # here", size("1x")),
        ("tirreno_zone big; # here", size("big")),
        ("tirreno_zone -1m; # here", size("-1m")),
        ("tirreno_zone \"\"; # here", size("")),
        ("tirreno_zone $size; # here", size("$size")),
        (
            "tirreno_anonymous yes; # here",
            "invalid value \"yes\" in \"tirreno_anonymous\" directive, \
             it must be \"on\" or \"off\""
                .into(),
        ),
        ("tirreno_param username $remote_user; # here", parameter("username")),
        ("tirreno_param \"\" $remote_user; # here", parameter("")),
        ("tirreno_param $name $remote_user; # here", parameter("$name")),
        ("tirreno_param url $uri;\ntirreno_param url $uri; # here", same("url")),
        ("tirreno_param eventType login; # here", kind("login")),
        ("tirreno_param eventType PAGE_VIEW; # here", kind("PAGE_VIEW")),
        ("tirreno_state \"\"; # here", "\"tirreno_state\" names no file".into()),
        (
            "tirreno_targets all tirreno; # here\nserver { }",
            "\"all\" in \"tirreno_targets\" directive is every target, remove the other names,".into(),
        ),
        // What would be everybody's name.
        ("tirreno_user Cookie:a; # here", everybodys("Cookie:a", "user")),
        ("tirreno_user cooky:a; # here", everybodys("cooky:a", "user")),
        ("tirreno_user cookie_U; # here", everybodys("cookie_U", "user")),
        ("tirreno_user remote_user; # here", everybodys("remote_user", "user")),
        ("tirreno_user verified verified $remote_user; # here", everybodys("verified", "user")),
        ("tirreno_user $remote_user verified; # here", everybodys("verified", "user")),
        ("tirreno_user SESSION; # here", everybodys("SESSION", "user")),
        ("tirreno_param userName foo:bar; # here", everybodys("foo:bar", "param")),
        // What is a secret.
        (
            "tirreno_param pageTitle header:Cookie; # here",
            "invalid value \"header:Cookie\" in \"tirreno_param\" directive, what has such a name is a \
             secret, and no user"
                .into(),
        ),
        (
            "tirreno_event page_view * / field=x:$http_authorization; # here",
            "invalid \"field=x:$http_authorization\", what has such a name is a secret, and no user in \
             \"tirreno_event\" directive"
                .into(),
        ),
        (
            "tirreno_session cookie:S;\nserver {\ntirreno_event page_view * / field=x:cookie:S; # here\n}",
            format!("a rule {sent}"),
        ),
        (
            "tirreno_session header:X-S;\ntirreno_event page_view * / \"title=header:x-s\"; # here\nserver { }",
            format!("a rule {sent}"),
        ),
        (
            "tirreno_param pageTitle $cookie_S;\ntirreno_session cookie:S; # here\nserver { }",
            format!("\"tirreno_user\" or \"tirreno_param\" {sent}"),
        ),
        ("tirreno_user $; # here", "invalid variable name".into()),
        ("tirreno_param url \"$scheme://$\"; # here", "invalid variable name".into()),
        (
            "tirreno_ip ${remote_addr; # here",
            "the closing bracket in \"remote_addr\" variable is missing".into(),
        ),
        // The wrong place.
        ("tirreno_status; # here", "\"tirreno_status\" directive is not allowed here".into()),
        ("url http://127.0.0.1/; # here", "unknown directive \"url\"".into()),
        ("tirreno_key %KEY%; # here", "unknown directive \"tirreno_key\"".into()),
        (
            "server {\ntirreno_target { # here\n}\n}",
            "\"tirreno_target\" directive is not allowed here".into(),
        ),
        (
            "server {\nlocation / {\ntirreno_target { # here\n}\n}\n}",
            "\"tirreno_target\" directive is not allowed here".into(),
        ),
        (
            "server {\ntirreno_zone 16m; # here\n}",
            "\"tirreno_zone\" directive is not allowed here".into(),
        ),
        (
            "server {\ntirreno_status; # here\n}",
            "\"tirreno_status\" directive is not allowed here".into(),
        ),
        (
            "server {\nif ($http_dnt) {\ntirreno off; # here\n}\n}",
            "\"tirreno\" directive is not allowed here".into(),
        ),
        (
            "server {\nlocation / {\nif ($http_dnt) {\ntirreno_user $remote_user; # here\n}\n}\n}",
            "\"tirreno_user\" directive is not allowed here".into(),
        ),
        (
            "server {\nlocation / {\nif ($http_dnt) {\ntirreno_session $cookie_s; # here\n}\n}\n}",
            "\"tirreno_session\" directive is not allowed here".into(),
        ),
        (
            "server {\nlocation / {\nproxy_pass http://127.0.0.1:9;\ntirreno_status; # here\n}\n}",
            handler.into(),
        ),
        ("server {\nlocation / {\ntirreno_status;\ntirreno_status; # here\n}\n}", handler.into()),
        (
            "server {\nlocation / {\ntirreno_status; # here\nproxy_pass http://127.0.0.1:1;\n}\n}",
            "\"tirreno_status\" does nothing, because the location has another handler such as \
             \"proxy_pass\""
                .into(),
        ),
    ];
    for (http, message) in rows {
        let message = format!("[emerg] {message}");
        assert_says(configuration(&format!("%TARGET%\n{http}")), &[&message]);
    }
    let outside = Nginx::builder().main(&format!("tirreno on; {HERE}"));
    assert_says(outside, &["[emerg] \"tirreno\" directive is not allowed here"]);
}

#[test]
fn targets_need_names_of_their_own() {
    let duplicate = |name: &str| {
        format!(
            "[emerg] duplicate target \"{name}\", \
             write \"tirreno_target NAME {{\" with another name"
        )
    };
    let off = "{\ntype none;\n}";
    for (first, second, name) in [("", "", "tirreno"), ("", "tirreno", "tirreno"), ("a", "a", "a")]
    {
        let http = format!("tirreno_target {first} {off}\n\ntirreno_target {second} {{ {HERE}\n}}");
        assert_says(configuration(&http), &[&duplicate(name)]);
    }
    let many = |end: &str| {
        let targets = (0..32).map(|i| format!("tirreno_target t{i} {off}\n")).collect::<String>();
        configuration(&(targets + end))
    };
    assert_says(many(""), &[]);
    let one_more = format!("tirreno_target {{ {HERE}\n}}");
    assert_says(many(&one_more), &["[emerg] too many targets, there may be 32"]);
}

#[test]
fn tirreno_targets_knows_the_targets_that_come_after_it() {
    let unknown = |name: &str| {
        format!(
            "[emerg] unknown target \"{name}\" in \"tirreno_targets\" directive, \
             no \"tirreno_target\" has this name"
        )
    };
    for http in [
        "server {\ntirreno_targets siem; # here\n}",
        "server {\ntirreno_targets tirreno siem; # here\n}",
        "server {\ntirreno_targets all siem; # here\n}",
        "server {\nlocation / {\nlocation /a {\ntirreno_targets siem; # here\n}\n}\n}",
        "tirreno_targets siem; # here\nserver {\n}",
    ] {
        assert_says(configuration(&format!("{http}\n%TARGET%")), &[&unknown("siem")]);
    }
    let http = format!("server {{\ntirreno_targets $name; {HERE}\n}}\n%TARGET%");
    assert_says(configuration(&http), &[&unknown("$name")]);

    let siem = "tirreno_target siem { url http://127.0.0.1:9/; api_key %KEY%; }";
    let off = "tirreno_target siem { type none; }";
    for target in [siem, off] {
        for http in ["server { %USE% }", "%USE% server { }", "server { location / { %USE% } }"] {
            let used = http
                .replace("%USE%", "tirreno on; tirreno_user $remote_user; tirreno_targets siem;");
            assert_says(configuration(&format!("{used}\n%TARGET%\n{target}")), &[]);
        }
    }
}

#[test]
fn a_target_that_is_switched_off_needs_nothing() {
    for block in
        ["{ type none; }", "{ type none; queue 5; }", "{ type none; url http://127.0.0.1/; }"]
    {
        assert_says(configuration(&format!("tirreno_target {block}")), &[]);
        assert_says(configuration(&format!("%TARGET% tirreno_target siem {block}")), &[]);
    }
}

#[test]
fn tirreno_on_needs_a_target() {
    let message = "[emerg] \"tirreno\" is on, but there is no \"tirreno_target\", add one";
    for http in [
        "tirreno on; # here\nserver {\n}\n",
        "server {\ntirreno on; # here\ntirreno_user $remote_user;\n}\n\n",
        "server {\nlocation / {\nlocation /a {\ntirreno $cookie_on; # here\n}\n}\n}",
        "server {\nlocation / {\nif ($http_dnt) {\ntirreno on; # here\n}\n}\n}",
        "tirreno off;\nserver {\nlocation / {\ntirreno on; # here\n}\n}",
    ] {
        assert_says(configuration(http), &[message]);
    }
    let used = "server { tirreno on; tirreno_user $remote_user; }";
    for target in ["tirreno_target { type none; }", "%TARGET%"] {
        assert_says(configuration(&format!("{used}\n{target}")), &[]);
    }
}

#[test]
fn a_target_that_nothing_uses_is_fine() {
    assert_says(configuration("%TARGET% server { }"), &[]);
    assert_says(
        configuration("%TARGET% tirreno off; server { tirreno 0; location / { tirreno \"\"; } }"),
        &[],
    );
    assert_says(configuration("tirreno off; tirreno_user $remote_user; server { }"), &[]);
}

#[test]
fn tirreno_on_without_any_possible_user_is_warned_about_once() {
    for http in [
        "server {\ntirreno on; # here\nlocation / {\n}\nlocation /a {\n}\n}",
        "server {\nlocation / {\ntirreno on; # here\n}\n}",
        "server {\nlocation / {\nif ($http_dnt) {\ntirreno on; # here\n}\n}\n}",
        "server {\ntirreno $cookie_x; # here\n}",
        "tirreno on; # here\nserver {\nlocation / {\n}\n}\nserver {\nserver_name b;\n}",
        "server {\ntirreno on; # here\ntirreno_user \"\";\n}",
        "server {\ntirreno on; # here\ntirreno_param userName \"\";\n}",
        "server {\ntirreno on; # here\ntirreno_user $remote_user;\ntirreno_param userName \"\";\n}",
        "server {\ntirreno on; # here\ntirreno_param fullName $remote_user;\n}",
        "server {\ntirreno on; # here\ntirreno_anonymous off;\n}",
    ] {
        assert_says(configuration(&format!("%TARGET%\n{http}")), &[NO_USER]);
    }
    let twice = format!(
        "%TARGET%\nserver {{\ntirreno on; {HERE}\n}}\n\
         server {{\nserver_name b;\ntirreno on; {HERE}\n}}"
    );
    assert_says(configuration(&twice), &[NO_USER, NO_USER]);
    for http in [
        "tirreno on; tirreno_user $remote_user; server { location / { } }",
        "tirreno on; server { tirreno_user $remote_user; }",
        "tirreno on; server { location / { tirreno_user $remote_user; } } server { server_name b; }",
        "server { tirreno on; location / { location /a { tirreno_anonymous on; } } }",
        "server { tirreno on; location / { if ($http_dnt) { tirreno off; } tirreno_user a; } }",
        "tirreno_user $remote_user; server { tirreno on; }",
        "tirreno_anonymous on; server { location / { tirreno on; } }",
        "server { tirreno on; tirreno_anonymous on; }",
        "server { tirreno on; tirreno_param userName $remote_user; }",
        "server { tirreno_user $remote_user; location / { if ($http_dnt) { tirreno on; } } }",
        "server { tirreno_user \"\" $remote_user; location / { tirreno on; } }",
        "server { tirreno off; }",
    ] {
        assert_says(configuration(&format!("%TARGET%\n{http}")), &[]);
    }
}

#[test]
fn an_address_from_a_header_is_warned_about() {
    let warning = |name: &str| {
        format!(
            "[warn] \"{name}\" takes the address from a header that any client can forge, \
             remove it and use \"set_real_ip_from\" and \"real_ip_header\" of the realip module"
        )
    };
    for value in [
        "$http_x_forwarded_for",
        "$http_x_real_ip",
        "${http_x_real_ip}",
        "$HTTP_X_REAL_IP",
        "$http_cf_connecting_ip",
        "\"a$http_x_real_ip\"",
    ] {
        let http = format!("%TARGET%\nserver {{\ntirreno_ip {value}; {HERE}\n}}");
        assert_says(configuration(&http), &[&warning("tirreno_ip")]);
        let http = format!("%TARGET%\ntirreno_param ipAddress {value}; {HERE}");
        assert_says(configuration(&http), &[&warning("tirreno_param")]);
    }
    for http in [
        "tirreno_ip $remote_addr;",
        "tirreno_ip $realip_remote_addr;",
        "tirreno_param userAgent $http_x_real_agent;",
    ] {
        assert_says(configuration(&format!("%TARGET%\n{http}")), &[]);
    }
}

#[test]
fn an_unknown_variable_is_refused_as_everywhere_in_nginx() {
    for line in [
        "tirreno $nothing;",
        "tirreno_user $nothing;",
        "tirreno_user $remote_user a$nothing;",
        "tirreno_session $cookie_s $nothing;",
        "tirreno_ip ${nothing};",
        "tirreno_param url $host$nothing;",
    ] {
        let off = if line.starts_with("tirreno ") { "" } else { "tirreno off;" };
        let builder =
            configuration(&format!("%TARGET%\nserver {{ {off} {line} tirreno_anonymous on; }}"));
        assert_says(builder, &["[emerg] unknown \"nothing\" variable"]);
    }
    // Variables that are defined after their use.
    let http =
        "server { tirreno $late; tirreno_user $late; } map $uri $late { default 1; } %TARGET%";
    assert_says(configuration(http), &[]);
}

#[test]
fn messages_name_the_included_file() {
    let incomplete = format!("\n\ntirreno_target {{ {HERE}\n}}");
    let no_url =
        "[emerg] target \"tirreno\" has no \"url\", add it like \"url https://HOST/sensor/;\"";
    let unknown = "[emerg] unknown target \"siem\" in \"tirreno_targets\" directive, \
         no \"tirreno_target\" has this name";
    let interval = "[emerg] invalid value \"soon\" in \"interval\" directive, \
         it must be a time like \"1s\" or \"500ms\"";
    let include = |http: &str| configuration(http);

    assert_says(include("\ninclude a.conf;").file("a.conf", &incomplete), &[no_url]);
    assert_says(include("include sub/*.conf;").file("sub/c.conf", &incomplete), &[no_url]);

    // The server in one file, its target in another.
    let server = format!("server {{\n\n\ntirreno_targets siem; {HERE}\n}}");
    let builder = include("include a.conf;\ninclude b.conf;");
    assert_says(builder.file("a.conf", &server).file("b.conf", "%TARGET%"), &[unknown]);

    let server = format!("\nserver {{\ntirreno on; {HERE}\n}}");
    let builder = include("include b.conf;\ninclude a.conf;");
    assert_says(builder.file("a.conf", &server).file("b.conf", "%TARGET%"), &[NO_USER]);

    // Inside of a target.
    let http = "tirreno_target {\nurl http://127.0.0.1:9/;\napi_key %KEY%;\ninclude a.conf;\n}";
    assert_says(include(http).file("a.conf", &format!("\ninterval soon; {HERE}")), &[interval]);
    assert_says(include(http).file("a.conf", "interval 2s;"), &[]);
    let twice = "[emerg] \"api_key\" directive is duplicate";
    assert_says(include(http).file("a.conf", &format!("api_key %KEY%; {HERE}")), &[twice]);
    let nested = include(http).file("a.conf", "include sub/*.conf;");
    assert_says(nested.file("sub/c.conf", &format!("\n\ninterval soon; {HERE}")), &[interval]);
    let missing = format!("tirreno_target {{\ninclude none.conf; {HERE}\n}}");
    assert_says(
        include(&missing),
        &["[emerg] open() \"%PREFIX%/none.conf\" failed (2: No such file or directory)"],
    );

    // A block that does not end.
    let open = format!("tirreno_target {{\nurl http://127.0.0.1:9/;\n{HERE}");
    let end = "[emerg] unexpected end of file, expecting \"}\"";
    assert_says(include("include a.conf;").file("a.conf", &open), &[end]);
}

#[test]
fn relative_paths_start_where_nginx_conf_is() {
    // Neither nginx's prefix nor the directory of an included file.
    let nginx = configuration("").build();
    let conf = nginx.prefix().join("conf");
    fs::create_dir_all(conf.join("sub")).unwrap();
    let write = |name: &str, text: &str| fs::write(conf.join(name), text).unwrap();
    write("main.conf", &whole("include sub/target.conf;"));
    let target = "tirreno_target {
        url https://127.0.0.1:9/;
        api_key_file keys/tirreno.key;
        ssl_trusted_certificate ca.pem;
    }";
    write("sub/target.conf", target);
    write("ca.pem", &Authority::new("test").pem());
    let main = conf.join("main.conf");

    let (ok, output) = nginx_t(nginx.prefix(), &main);
    let message = format!(
        "[emerg] \"{0}/keys/tirreno.key\" cannot be read: No such file or directory (os error 2) in \
         {0}/sub/target.conf:3",
        conf.display()
    );
    assert_eq!((ok, said(&output)), (false, vec![message.as_str()]));

    fs::create_dir(conf.join("keys")).unwrap();
    write("keys/tirreno.key", KEY);
    fs::set_permissions(conf.join("keys/tirreno.key"), Permissions::from_mode(0o600)).unwrap();
    let (ok, output) = nginx_t(nginx.prefix(), &main);
    assert!(ok && said(&output).is_empty(), "{output}");
}

/// A configuration that stands on its own.
fn whole(http: &str) -> String {
    let module = from_env("TEST_NGINX_MODULE");
    format!(
        "load_module {};\npid nginx.pid;\nerror_log stderr;\nevents {{ }}\n\
         http {{\naccess_log off;\n{http}\n}}\n",
        module.display()
    )
}

#[test]
fn a_zone_must_have_room_for_all_workers() {
    let nginx = |workers: usize, zone: &str| {
        configuration(&format!("%TARGET%\n{zone}")).workers(workers).build()
    };
    let least_of = |output: &str, before: &str| {
        let number = output.split_once(before).map(|(_, rest)| rest.trim_start_matches('"'));
        let number = number.and_then(|rest| rest.split_once('k'));
        let number = number.and_then(|(number, _)| number.parse::<usize>().ok());
        number.unwrap_or_else(|| panic!("no size in {output}"))
    };
    let least = |output: &str| least_of(output, "at least ");

    // Too small for any number of workers, which is known when the directive is read.
    let (ok, output) = nginx(1, "tirreno_zone 64k;").test();
    let one = least(&output);
    let message = format!(
        "[emerg] invalid value \"64k\" in \"tirreno_zone\" directive, \
         it must be at least \"{one}k\""
    );
    assert!(!ok);
    assert_nginx_says(&nginx(1, &format!("tirreno_zone 64k; {HERE}")), &[&message]);
    assert_nginx_says(&nginx(1, &format!("tirreno_zone {one}k;")), &[]);

    // Too small for this number of workers, which is known only at the end.
    let (ok, output) = nginx(64, &format!("tirreno_zone {one}k;")).test();
    let many = least(&output);
    let message = format!(
        "[emerg] tirreno: \"tirreno_zone\" is too small for 64 worker processes, \
         it must be at least \"{many}k\""
    );
    assert!(!ok);
    assert_nginx_says(&nginx(64, &format!("tirreno_zone {one}k; {HERE}")), &[&message]);
    assert_nginx_says(&nginx(64, &format!("tirreno_zone {many}k;")), &[]);

    // Without the directive, the zone is as large as the workers need, if their number is known by then.
    let (ok, output) = nginx(1000, "").test();
    assert!(ok && said(&output).is_empty(), "{output}");
    let late = |more: &str| {
        let nginx = configuration("").build();
        let conf = nginx.prefix().join("late.conf");
        let target = "tirreno_target { url http://127.0.0.1:9/; api_key k; }";
        let text = format!("{}worker_processes 1000;\n", whole(&format!("{target} {more}")));
        fs::write(&conf, text).unwrap();
        // It holds a key.
        fs::set_permissions(&conf, Permissions::from_mode(0o600)).unwrap();
        nginx_t(nginx.prefix(), &conf)
    };
    let (ok, output) = late("");
    let size = least_of(&output, "add \"tirreno_zone ");
    let message = format!(
        "[emerg] tirreno: 1000 worker processes need more shared memory, write \
         \"worker_processes\" before \"http\", or add \"tirreno_zone {size}k;\""
    );
    assert!(!ok);
    assert_eq!(said(&output), [message], "{output}");
    let (ok, output) = late(&format!("tirreno_zone {size}k;"));
    assert!(ok && said(&output).is_empty(), "{output}");
}

#[test]
fn the_configurations_that_people_include_pass() {
    let files = configurations(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf"));
    assert!(files.len() >= 2, "a configuration is gone: {files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        match file.file_name().and_then(|name| name.to_str()) {
            Some("demo.conf") => demo_conf_passes(&text),
            // These are not nginx's configurations.
            _ if file.components().any(|part| part.as_os_str() == "monitoring") => {}
            // The presets have their own tests.
            _ if file.parent().is_some_and(|directory| directory.ends_with("presets")) => {}
            Some(name @ ("mattermost.conf" | "mattermost-audit.conf")) => {
                let preset = fs::read_to_string(file.with_file_name("presets/mattermost.conf"));
                mattermost_conf_passes(&text, &preset.unwrap(), name == "mattermost-audit.conf");
            }
            _ => panic!("{} has no test", file.display()),
        }
    }
}

/// The files that end with `.conf`, in all directories below.
fn configurations(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(configurations(&path));
        } else if path.extension().is_some_and(|extension| extension == "conf") {
            files.push(path);
        }
    }
    files
}

fn demo_conf_passes(text: &str) {
    let nginx = configuration("").file("tirreno.key", "%KEY%").build();
    // As in the demo, the workers are another user.
    let audit = nginx.prefix().join("audit");
    fs::create_dir(&audit).unwrap();
    fs::set_permissions(&audit, Permissions::from_mode(0o777)).unwrap();
    let module = from_env("TEST_NGINX_MODULE");
    let text = replace_all(
        text,
        &[
            ("@MODULE@", module.to_str().unwrap()),
            ("@PREFIX@", nginx.prefix().to_str().unwrap()),
            ("@PORT@", &nginx.port().to_string()),
            ("@SENSOR@", &nginx.port_n(1).to_string()),
            ("@APP@", &nginx.port_n(2).to_string()),
        ],
    );
    let conf = nginx.prefix().join("demo.conf");
    fs::write(&conf, text).unwrap();
    let (ok, output) = nginx_t(nginx.prefix(), &conf);
    assert!(ok && said(&output).is_empty(), "{output}");
}

fn mattermost_conf_passes(text: &str, preset: &str, has_audit: bool) {
    let certificates = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    let system = certificates.path().join("system.pem");
    authority.write_pem(&system);
    let (certificate, key) = authority.localhost().write(certificates.path(), "mattermost");
    let letsencrypt = |file: &str| format!("/etc/letsencrypt/live/mattermost.example.com/{file}");
    let audit: &[_] = if has_audit {
        &[("=/etc/nginx/audit.key", "=key"), (" /var/log/nginx-audit/", " logs/")]
    } else {
        &[]
    };
    let text = replace_all(
        &replace_all(text, audit),
        &[
            (" 80;", " 127.0.0.1:%PORT%;"),
            (" 443 ssl", " 127.0.0.1:%PORT1% ssl"),
            (" /etc/nginx/tirreno.key;", " key;"),
            (" /usr/share/ngx-tirreno/presets/mattermost.conf;", " preset.conf;"),
            // As on Debian: this directory belongs to root, and what is below it does not exist.
            (" /var/lib/nginx/", " %PREFIX%/lib/"),
            (&letsencrypt("fullchain.pem"), certificate.to_str().unwrap()),
            (&letsencrypt("privkey.pem"), key.to_str().unwrap()),
        ],
    );
    let nginx = configuration("include mattermost.conf;")
        .file("mattermost.conf", &text)
        .file("preset.conf", preset)
        .env("SSL_CERT_FILE", system.to_str().unwrap())
        .env("SSL_CERT_DIR", "")
        .user("nobody nogroup")
        .build();
    fs::create_dir(nginx.prefix().join("lib")).unwrap();
    for directory in [nginx.prefix().to_owned(), nginx.prefix().join("lib")] {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(nginx.prefix().join("logs"), Permissions::from_mode(0o777)).unwrap();
    let (ok, output) = nginx.test();
    let mut said = said(&output);
    // The configuration supports old and new versions of nginx, so this warning is expected.
    said.retain(|line| {
        !line.starts_with("[warn] the \"listen ... http2\" directive is deprecated")
    });
    assert!(ok && said.is_empty(), "{output}");
}

/// Replaces each text that is there.
#[track_caller]
fn replace_all(text: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no {from:?} in\n{text}");
        text.replace(from, to)
    })
}

#[test]
fn each_threat_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let security = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let (_, threats) = security.split_once("| threat | answer | tried in |").unwrap();
    let rows: Vec<_> = threats.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() >= 20, "{rows:?}");
    for row in rows {
        let tried = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let mut count = 0;
        for file in tried.split("; ") {
            let mut names = file.split('`').skip(1).step_by(2);
            let path = root.join(names.next().unwrap());
            assert!(path.exists(), "{} in {row}", path.display());
            for name in names {
                let text = fs::read_to_string(&path).unwrap();
                assert!(
                    text.contains(&format!("fn {name}()")),
                    "no test {name} in {}",
                    path.display()
                );
                count += 1;
            }
        }
        assert!(count > 0, "no test in {row}");
    }
}
