//! What each parameter of each type of target sets, and what is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::audit::config::{Console, FileConfig, ServerConfig};
use crate::config::block::tests::{Case, Written, assert_each_parameter, case, show};
use crate::event::Param;
use crate::tirreno::config::TirrenoConfig;

type Read = Option<TargetConfig>;

const TIRRENO: &str = "url http://127.0.0.1:9/; api_key k";
const HTTPS: &str = "url https://127.0.0.1:9/; api_key k; ssl_trusted_certificate ca.pem";
const FILE: &str = "type file; path a.log";
const CONSOLE: &str = "type console";
const SYSLOG: &str = "type syslog; server localhost";
const TCP: &str = "type tcp; server localhost:601";

fn target(read: &Read) -> &TargetConfig {
    read.as_ref().unwrap()
}

fn tirreno(read: &Read) -> &TirrenoConfig {
    let Destination::Tirreno(tirreno) = &target(read).destination else { panic!("{read:?}") };
    tirreno
}

fn audit(read: &Read) -> &AuditConfig {
    let Destination::Audit(audit) = &target(read).destination else { panic!("{read:?}") };
    audit
}

fn file(read: &Read) -> &FileConfig {
    let Sink::File(file) = &audit(read).sink else { panic!("{read:?}") };
    file
}

fn server(read: &Read) -> &ServerConfig {
    match &audit(read).sink {
        Sink::Syslog(syslog) => &syslog.server,
        Sink::Tcp(server) => server,
        _ => panic!("{read:?}"),
    }
}

fn header(read: &Read) -> &crate::audit::syslog::HeaderConfig {
    let Sink::Syslog(syslog) = &audit(read).sink else { panic!("{read:?}") };
    &syslog.header
}

fn out(read: &Read) -> Console {
    let Sink::Console(out) = audit(read).sink else { panic!("{read:?}") };
    out
}

/// Whether the connection's configuration has that.
fn has_tls(read: &Read, what: &str) -> String {
    show(show(&tirreno(read).tls).contains(what))
}

fn spool(read: &Read) -> String {
    let spool = target(read).spool.as_ref();
    show(spool.map(|s| (s.path.file_name().unwrap(), s.max_size, s.max_age, s.when_full)))
}

const NO_URL: &str = "target \"t\" has no \"url\", add it like \"url https://HOST/sensor/;\"";
const NO_KEY: &str = "target \"t\" has no API key, add \"api_key_file PATH;\"";
const NO_PATH: &str =
    "target \"t\" has no \"path\", add it like \"path /var/log/audit/nginx.log;\"";
const NO_SERVER: &str = "target \"t\" has no \"server\", add it like \"server HOST:PORT;\"";

const GENERAL: &[Case<Read>] = &[
    case(
        "",
        "type console",
        |c| target(c).destination.type_name().into(),
        [NO_URL, "console"],
        (
            "type http",
            "invalid value \"http\" in \"type\" directive, it must be \"tirreno\", \"file\", \"console\", \
             \"syslog\", \"tcp\" or \"none\"",
        ),
    ),
    case("", "type none", |c| show(c.is_none()), [NO_URL, "true"], ("type NONE", "invalid value")),
    case(
        CONSOLE,
        "events account_*",
        |c| {
            let kinds = [EventType::PageView, EventType::AccountLogin];
            show(kinds.map(|kind| target(c).events.contains(kind, Level::Content)))
        },
        ["[true, true]", "[false, true]"],
        (
            "events account_* login",
            "no event type matches \"login\" in \"events\" directive, the types are page_view, ",
        ),
    ),
    case(
        CONSOLE,
        "queue 10",
        |c| show((target(c).queue_events, target(c).queue_bytes)),
        ["(10000, 16777216)", "(10, 16777216)"],
        (
            "queue 10000001",
            "invalid value \"10000001\" in \"queue\" directive, it must be a number from 1 to 10000000",
        ),
    ),
    case(
        CONSOLE,
        "queue 10 size=1m",
        |c| show((target(c).queue_events, target(c).queue_bytes)),
        ["(10000, 16777216)", "(10, 1048576)"],
        (
            "queue 10 1m",
            "invalid parameter \"1m\" in \"queue\" directive, it must be a size like \"size=16m\"",
        ),
    ),
    case(
        CONSOLE,
        "interval 0",
        |c| show(target(c).interval),
        ["1s", "0ns"],
        ("interval x", "invalid value \"x\" in \"interval\" directive, it must be a time like "),
    ),
    case(
        CONSOLE,
        "batch_size 7",
        |c| show(target(c).batch_size),
        ["512", "7"],
        ("batch_size 0", "invalid value \"0\" in \"batch_size\" directive, it must be a number "),
    ),
    case(
        CONSOLE,
        "shutdown_timeout 200ms",
        |c| show(target(c).shutdown_timeout),
        ["1s", "200ms"],
        ("shutdown_timeout -1s", "invalid value \"-1s\" in \"shutdown_timeout\" directive, "),
    ),
    case(
        TIRRENO,
        "repeat off",
        |c| show(target(c).repeat),
        ["Some(20)", "None"],
        (
            "repeat 0/m",
            "invalid value \"0/m\" in \"repeat\" directive, it must be \"off\" or a number a minute like ",
        ),
    ),
    case(
        CONSOLE,
        "repeat 5/m",
        |c| show(target(c).repeat),
        ["None", "Some(5)"],
        ("repeat 5", "invalid value \"5\" in \"repeat\" directive, "),
    ),
];

const PRIVACY: &[Case<Read>] = &[
    case(
        CONSOLE,
        "ip_mask 24 56",
        |c| show(target(c).privacy.ip_mask),
        ["None", "Some(IpMask { v4: 24, v6: 56 })"],
        (
            "ip_mask 24 129",
            "invalid value \"129\" in \"ip_mask\" directive, the prefix of IPv6 addresses must be a number \
             from 0 to 128",
        ),
    ),
    case(
        CONSOLE,
        "hash_user key",
        |c| show(&target(c).privacy.hash_user),
        ["None", "Some(***)"],
        ("hash_user empty", "\"hash_user\" is empty, it must hold the key for users"),
    ),
    case(
        CONSOLE,
        "omit payload userAgent",
        |c| {
            let is_omitted = |param: &Param| target(c).privacy.omit & param.bit() != 0;
            show(Param::ALL.into_iter().filter(is_omitted).collect::<Vec<_>>())
        },
        ["[]", "[UserAgent, Payload]"],
        ("omit payload url", "\"url\" in \"omit\" directive is required by Tirreno, see "),
    ),
    case(
        CONSOLE,
        "query off",
        |c| show(target(c).privacy.cut_query),
        ["false", "true"],
        ("query no", "invalid value \"no\" in \"query\" directive, it must be \"on\" or \"off\""),
    ),
];

const OF_TIRRENO: &[Case<Read>] = &[
    case(
        "api_key k",
        "url http://localhost/a/sensor/",
        |c| tirreno(c).endpoint.sensor().to_string(),
        [NO_URL, "http://localhost/a/sensor/"],
        (
            "url http://user:pass@localhost/",
            "invalid value in \"url\" directive, it must not hold a ",
        ),
    ),
    case(
        "url http://127.0.0.1:9/",
        "api_key k1",
        |c| tirreno(c).api_key.reveal().into(),
        [NO_KEY, "k1"],
        (
            "api_key é",
            "\"api_key\" must hold the API key and nothing else, in one line without spaces",
        ),
    ),
    case(
        "url http://127.0.0.1:9/",
        "api_key_file key",
        |c| tirreno(c).api_key.reveal().into(),
        [NO_KEY, "0123456789abcdef0123456789abcdef"],
        ("api_key_file empty", "\"api_key_file\" is empty, it must hold the API key"),
    ),
    case(
        TIRRENO,
        "header X-A b; header X-C d",
        |c| {
            let headers = tirreno(c).headers.iter();
            show(headers.map(|(name, value)| (&**name, value.reveal())).collect::<Vec<_>>())
        },
        ["[]", "[(\"X-A\", \"b\"), (\"X-C\", \"d\")]"],
        (
            "header api-key x",
            "\"header\" directive cannot change \"api-key\", which the module sets",
        ),
    ),
    case(
        TIRRENO,
        "timeout 3s",
        |c| show(tirreno(c).timeout),
        ["15s", "3s"],
        (
            "timeout 0",
            "invalid value \"0\" in \"timeout\" directive, it must be a time above 0 like ",
        ),
    ),
    case(
        TIRRENO,
        "connections 64",
        |c| show(tirreno(c).connections),
        ["1", "64"],
        (
            "connections 65",
            "invalid value \"65\" in \"connections\" directive, it must be a number ",
        ),
    ),
    case(
        TIRRENO,
        "rate 30r/m",
        |c| show(tirreno(c).rate),
        ["None", "Some(0.5)"],
        (
            "rate 30",
            "invalid value \"30\" in \"rate\" directive, it must be \"auto\" or a rate like ",
        ),
    ),
    case(
        TIRRENO,
        "accept_200 on",
        |c| show(tirreno(c).accept_200),
        ["false", "true"],
        ("accept_200 1", "invalid value \"1\" in \"accept_200\" directive, it must be \"on\" or "),
    ),
    case(
        TIRRENO,
        "resend on",
        |c| show(tirreno(c).resend),
        ["false", "true"],
        ("resend ON", "invalid value \"ON\" in \"resend\" directive, it must be \"on\" or \"off\""),
    ),
    case(
        TIRRENO,
        "login_fail_delay 0",
        |c| show(tirreno(c).login_fail_delay),
        ["60s", "0ns"],
        ("login_fail_delay off", "invalid value \"off\" in \"login_fail_delay\" directive, "),
    ),
    case(
        TIRRENO,
        "spool s",
        spool,
        ["None", "Some((\"s\", 1073741824, 604800s, DropOldest))"],
        (
            "spool s when_full=wait",
            "invalid parameter \"when_full=wait\" in \"spool\" directive, it must be \"max_size=\", ",
        ),
    ),
    case(
        TIRRENO,
        "spool s max_size=2m max_age=1M when_full=drop_newest",
        spool,
        ["None", "Some((\"s\", 2097152, 2592000s, DropNewest))"],
        (
            "spool s max_size=1k",
            "invalid parameter \"max_size=1k\" in \"spool\" directive, it must be a size from 1m on, ",
        ),
    ),
];

const OF_TLS: &[Case<Read>] = &[
    case(
        "url https://localhost/; api_key k",
        "ssl_trusted_certificate ca.pem",
        |c| has_tls(c, "Roots(1)"),
        ["", "true"],
        (
            "ssl_trusted_certificate text.pem",
            "\"%PREFIX%/conf/text.pem\" cannot be used as \"ssl_trusted_certificate\": it holds no certificate",
        ),
    ),
    case(
        HTTPS,
        "ssl_verify off",
        |c| has_tls(c, "Anyone("),
        ["false", "true"],
        ("ssl_verify 1", "invalid value \"1\" in \"ssl_verify\" directive, it must be \"on\" or "),
    ),
    case(
        HTTPS,
        "ssl_certificate client.pem; ssl_certificate_key client.key",
        |c| has_tls(c, "certificate: Some("),
        ["false", "true"],
        (
            "ssl_certificate client.pem",
            "target \"t\": \"ssl_certificate\" needs \"ssl_certificate_key\"",
        ),
    ),
    case(
        HTTPS,
        "ssl_certificate_key client.key; ssl_certificate client.pem",
        |c| has_tls(c, "certificate: Some("),
        ["false", "true"],
        (
            "ssl_certificate_key client.key",
            "target \"t\": \"ssl_certificate_key\" needs \"ssl_certificate\"",
        ),
    ),
];

const OF_STREAMS: &[Case<Read>] = &[
    case(
        CONSOLE,
        "format gelf",
        |c| show(audit(c).format.is_gelf()),
        ["false", "true"],
        ("format xml", "unknown format \"xml\", it must be \"json\", "),
    ),
    case(
        CONSOLE,
        "format json hash_key_file=key",
        |c| show(audit(c).format.hash_key_file()),
        ["None", "Some(\"key\")"],
        ("format json key", "invalid parameter in \"format\" directive, it must be OPTION=VALUE"),
    ),
    case(
        TCP,
        "format gelf",
        |c| show(server(c).framing),
        ["Some(Newline)", "Some(Nul)"],
        ("format json hash_key_file=empty", "\"hash_key_file\" is empty, it must hold the key of "),
    ),
    case(
        "type file",
        "path logs/../a.log",
        |c| show(file(c).path.file_name().unwrap()),
        [NO_PATH, "\"a.log\""],
        ("path a.gz", "invalid value \"a.gz\" in \"path\" directive, it must be a name without "),
    ),
    case(
        FILE,
        "max_size off",
        |c| show(file(c).max_size),
        ["Some(104857600)", "None"],
        (
            "max_size 1",
            "invalid value \"1\" in \"max_size\" directive, it must be a size with a unit",
        ),
    ),
    case(
        FILE,
        "rotate 1M",
        |c| show(file(c).rotate),
        ["None", "Some(2592000s)"],
        (
            "rotate 1",
            "invalid value \"1\" in \"rotate\" directive, it must be a time with a unit, ",
        ),
    ),
    case(
        FILE,
        "max_age 2h",
        |c| show(file(c).max_age),
        ["None", "Some(7200s)"],
        ("max_age 0d", "invalid value \"0d\" in \"max_age\" directive, it must be a time with a "),
    ),
    case(
        FILE,
        "max_backups 3",
        |c| show(file(c).max_backups),
        ["None", "Some(3)"],
        (
            "max_backups all",
            "invalid value \"all\" in \"max_backups\" directive, it must be a number ",
        ),
    ),
    case(
        FILE,
        "compress on",
        |c| show(file(c).compress),
        ["false", "true"],
        (
            "compress gzip",
            "invalid value \"gzip\" in \"compress\" directive, it must be \"on\" or ",
        ),
    ),
    case(
        CONSOLE,
        "out stderr",
        |c| show(out(c)),
        ["Stdout", "Stderr"],
        (
            "out log",
            "invalid value \"log\" in \"out\" directive, it must be \"stdout\" or \"stderr\"",
        ),
    ),
    case(
        "type syslog",
        "server localhost",
        |c| server(c).address.to_string(),
        [NO_SERVER, "localhost:514"],
        (
            "server :1",
            "invalid value \":1\" in \"server\" directive, it must be like \"host:port\" or ",
        ),
    ),
    case(
        "type tcp",
        "server [::1]:601",
        |c| server(c).address.to_string(),
        [NO_SERVER, "[::1]:601"],
        ("server a", "the \"server\" of target \"t\" has no port, add it like \"a:601\""),
    ),
    case(
        "type syslog; server localhost:601",
        "transport tcp",
        |c| show((&server(c).transport, server(c).framing)),
        ["(Datagram, None)", "(Tcp, Some(OctetCounting))"],
        (
            "transport tcp4",
            "invalid value \"tcp4\" in \"transport\" directive, it must be \"udp\", ",
        ),
    ),
    case(
        SYSLOG,
        "transport tls; ssl_trusted_certificate ca.pem",
        |c| server(c).address.to_string(),
        ["localhost:514", "localhost:6514"],
        (
            "ssl_verify on",
            "target \"t\" has a parameter \"ssl_...\", which needs \"transport tls\"",
        ),
    ),
    case(
        TCP,
        "framing octet-counting",
        |c| show(server(c).framing),
        ["Some(Newline)", "Some(OctetCounting)"],
        (
            "framing lf",
            "invalid value \"lf\" in \"framing\" directive, it must be \"octet-counting\", ",
        ),
    ),
    case(
        SYSLOG,
        "max_message_size 2k",
        |c| show(server(c).max_message),
        ["Some(8000)", "Some(2048)"],
        (
            "max_message_size 9",
            "invalid value \"9\" in \"max_message_size\" directive, it must be a ",
        ),
    ),
    case(
        SYSLOG,
        "facility daemon",
        |c| show(header(c).facility),
        ["Facility(23)", "Facility(3)"],
        (
            "facility x",
            "invalid value \"x\" in \"facility\" directive, it must be one of kern, user, ",
        ),
    ),
    case(
        SYSLOG,
        "severity warn",
        |c| show(header(c).severity),
        ["None", "Some(Severity(4))"],
        ("severity x", "invalid value \"x\" in \"severity\" directive, it must be one of emerg, "),
    ),
    case(
        SYSLOG,
        "tag app",
        |c| header(c).tag.clone(),
        ["nginx", "app"],
        ("tag é", "invalid value \"é\" in \"tag\" directive, it must be 1 to 48 printable ASCII "),
    ),
];

/// All of them.
fn cases() -> Vec<&'static Case<Read>> {
    [GENERAL, PRIVACY, OF_TIRRENO, OF_TLS, OF_STREAMS].into_iter().flatten().collect()
}

#[test]
fn each_parameter_sets_what_it_says_and_refuses_what_is_wrong() {
    assert_each_parameter::<TargetBlock>(&cases(), &["header"]);
}

#[test]
fn a_parameter_of_another_type_is_refused() {
    let all = ["tirreno", "file", "console", "syslog", "tcp"];
    let belongs: &[(&[&str], &str)] = &[
        (&all, "events queue interval batch_size shutdown_timeout repeat"),
        (&all, "ip_mask hash_user omit query"),
        (&all[..1], "url api_key api_key_file header timeout connections rate accept_200 resend"),
        (&all[..1], "login_fail_delay spool"),
        (
            &["tirreno", "syslog", "tcp"],
            "ssl_trusted_certificate ssl_verify ssl_certificate ssl_certificate_key",
        ),
        (&all[1..], "format"),
        (&["file"], "path max_size rotate max_age max_backups compress"),
        (&["console"], "out"),
        (&["syslog", "tcp"], "server transport framing max_message_size"),
        (&["syslog"], "facility severity tag"),
    ];
    let mut file = Written::new();
    for case in cases().into_iter().filter(|case| case.name() != "type") {
        let name = case.name();
        let is_in = |(_, names): &&(&[&str], &str)| names.split(' ').any(|known| known == name);
        let (types, _) = belongs.iter().find(is_in).unwrap_or_else(|| panic!("{name}"));
        for kind in all {
            let read = file.read::<TargetBlock>(&format!("type {kind}; {}", case.parameter()));
            let message = format!("\"{name}\" does not belong into a target of type \"{kind}\"");
            let error = read.err().filter(|error| error.message == message);
            // It is in the third line, behind the block's beginning and its type.
            let line = error.map(|error| error.place.line);
            assert_eq!(line, (!types.contains(&kind)).then_some(3), "{name} in {kind}");
        }
    }
}

#[test]
fn what_no_block_takes_is_refused() {
    let mut file = Written::new();
    let mut says = |text, message| assert_eq!(file.error::<TargetBlock>(text), message, "{text}");
    says("key k", "unknown directive \"key\" in \"tirreno_target\"");
    says("include a b", "invalid number of arguments in \"include\" directive");
    says("queue 1 $q", "\"queue\" in \"tirreno_target\" cannot contain variables or \"$\"");
    says(
        "api_key $k",
        "\"api_key\" in \"tirreno_target\" cannot contain variables or \"$\", put the key into a file for \
         \"api_key_file\"",
    );
    says(
        "api_key k; api_key_file key",
        "\"api_key\" and \"api_key_file\" are both set, remove one",
    );
    says(
        "url http://127.0.0.1:9/; api_key k; ssl_verify on",
        "target \"t\" has a parameter \"ssl_...\", which needs a \"url\" that begins with \"https://\"",
    );
    let connection = "target \"t\" needs a connection: \"transport\" must be \"tcp\" or \"tls\", and \"server\" \
                      like \"HOST:PORT\"";
    says("type tcp; server unix:/dev/log", connection);
    says("type tcp; server a:1; transport udp", connection);
    says(
        "type syslog; server unix:/dev/log; transport tcp",
        "target \"t\" has a local socket as its \"server\": remove \"transport\"",
    );
    says(
        "type syslog; server a; framing nul",
        "target \"t\" sends each message as a datagram: \"framing\" needs \"transport\" \"tcp\" or \"tls\"",
    );
    // What is missing is said of the block's first line.
    assert_eq!(file.read::<TargetBlock>("events *; queue 1").unwrap_err().place.line, 1);
    for name in ["", "all", "a b", "é", &"a".repeat(MAX_NAME + 1)] {
        let error = TargetBlock::new(name).err().unwrap_or_default();
        assert!(error.starts_with(&format!("invalid target name \"{name}\": ")), "{error}");
    }
    assert!(TargetBlock::new(&"a".repeat(MAX_NAME)).is_ok());
}

#[test]
fn what_is_dangerous_is_warned_of_where_it_stands() {
    let mut file = Written::new();
    file.write("short", "k3y");
    let public = file.write("public", "0123456789abcdef0123456789abcdef");
    fs::set_permissions(&public, Permissions::from_mode(0o604)).unwrap();
    let public =
        format!("\"{}\" holds the API key and everyone can read it, run ", public.display());
    for (text, line, begin) in [
        (
            "url http://192.0.2.1/; api_key k",
            2,
            "\"url\" sends events and the API key to another host ",
        ),
        (&format!("{HTTPS}; ssl_verify off"), 5, "\"ssl_verify off\" lets anybody pretend to be "),
        (
            "type syslog; server 192.0.2.1",
            3,
            "\"server\" is another host and gets its messages over UDP",
        ),
        (
            "type console; hash_user short",
            3,
            "the key of \"hash_user\" is shorter than 32 characters, ",
        ),
        ("url http://127.0.0.1/; api_key_file public", 3, &public),
    ] {
        file.read::<TargetBlock>(text).unwrap();
        let [(found, message)] = &*file.warnings else { panic!("{text}: {:?}", file.warnings) };
        assert!(*found == line && message.starts_with(begin), "{text}: {found}: {message}");
    }
    for text in [TIRRENO, HTTPS, FILE, CONSOLE, SYSLOG, TCP] {
        file.read::<TargetBlock>(text).unwrap();
        assert!(file.warnings.is_empty(), "{text}: {:?}", file.warnings);
    }
    let conf = file.write("nginx.conf", "");
    fs::set_permissions(&conf, Permissions::from_mode(0o644)).unwrap();
    file.read::<TargetBlock>(TIRRENO).unwrap();
    let begin = format!("\"{}\" holds the API key and everyone can read it, put ", conf.display());
    assert!(file.warnings.iter().all(|(line, said)| *line == 3 && said.starts_with(&begin)));
    assert_eq!(file.warnings.len(), 1);
}

#[test]
fn a_key_in_the_place_of_its_file_is_in_no_message() {
    let mut file = Written::new();
    let conf = file.prefix.path().join("conf/");
    let message = format!("\"api_key_file\" names no file below \"{}\"", conf.display());
    assert_eq!(file.error::<TargetBlock>("api_key_file 5ecr3t"), message);
    let error = file.error::<TargetBlock>("type console; format json hash_key_file=5ecr3t");
    assert!(error.starts_with("\"hash_key_file\" names no file below "), "{error}");
    let error = file.error::<TargetBlock>("api_key_file ./none");
    assert!(error.contains("conf/./none\" cannot be read: "), "{error}");
}

#[test]
fn files_and_spools_lie_below_the_prefix() {
    let mut file = Written::new();
    let prefix = file.prefix.path().canonicalize().unwrap();
    let read = file.read::<TargetBlock>("type file; path ./conf/../a.log").unwrap();
    let place = format!("{}/conf/nginx.conf:3", file.prefix.path().display());
    let FileConfig { path, place: found, .. } = self::file(&read);
    assert_eq!((path, found), (&prefix.join("a.log"), &place));

    let read = file.read::<TargetBlock>(&format!("{TIRRENO}; spool s")).unwrap();
    let spool = target(&read).spool.as_ref().unwrap();
    assert_eq!(spool.path, file.prefix.path().join("s"));
    assert_eq!(spool.place, format!("{}/conf/nginx.conf:4", file.prefix.path().display()));
    assert_eq!(file.claimed, std::slice::from_ref(&spool.path));

    let error = file.error::<TargetBlock>("spool conf/key");
    assert!(error.ends_with("/conf/key\" is no directory"), "{error}");
    symlink(prefix.join("conf/key"), prefix.join("link")).unwrap();
    for (path, must) in [
        ("conf", "a file, not a directory"),
        ("a.log/", "a file, not a directory"),
        ("link", "a file, not a symbolic link"),
    ] {
        let text = format!("type file; path {path}");
        let message = format!("invalid value \"{path}\" in \"path\" directive, it must be {must}");
        assert_eq!(file.error::<TargetBlock>(&text), message);
        // A disk that hangs is asked nothing.
        file.answers = false;
        file.read::<TargetBlock>(&text).unwrap();
        file.answers = true;
    }
}
