//! What each parameter of `tirreno_identity` sets, and what is refused.

use super::*;
use crate::config::block::tests::{Case, Written, assert_each_parameter, case, show};

const HTTP: &str = "url http://127.0.0.1/me; map id userName";
const HTTPS: &str = "url https://127.0.0.1/me; map id userName; ssl_trusted_certificate ca.pem";

/// Whether the connection's configuration has that.
fn has_tls(lookup: &LookupConfig, what: &str) -> String {
    show(show(&lookup.tls).contains(what))
}

const CASES: &[Case<LookupConfig>] = &[
    case(
        "map id userName",
        "url http://localhost/me",
        |c| c.url.to_string(),
        ["\"tirreno_identity t\" has no \"url\", add it,", "http://localhost/me"],
        ("url /me", "the \"url\" must be like \"http://127.0.0.1:8065/api/v4/users/me\""),
    ),
    case(
        HTTP,
        "send cookie:SID",
        |c| show(&c.send),
        ["Bearer", "Cookie(\"SID\")"],
        (
            "send cookie:",
            "invalid value \"cookie:\" in \"send\" directive, it must be \"bearer\" or \"cookie:NAME\"",
        ),
    ),
    case(
        HTTP,
        "token_format [a-z]+",
        |c| show(c.token_format.as_ref().map(|format| format.as_str())),
        ["None", "Some(\"^(?:[a-z]+)$\")"],
        ("token_format (", "the regular expression of \"token_format\" is wrong: "),
    ),
    case(
        "url http://127.0.0.1/me",
        "map id userName; map mail emailAddress",
        |c| show(&c.map),
        [
            "\"tirreno_identity t\" has no \"map FIELD userName\", which names the user, add it,",
            "[(\"id\", UserName), (\"mail\", EmailAddress)]",
        ],
        (
            "map id url",
            "unknown parameter \"url\" in \"map\" directive, it must be one of userName, ",
        ),
    ),
    case(
        HTTP,
        "cache 1m",
        |c| show(c.cache),
        ["600s", "60s"],
        ("cache 0", "invalid value \"0\" in \"cache\" directive, it must be a time above 0 like "),
    ),
    case(
        HTTP,
        "concurrency 32",
        |c| show(c.concurrency),
        ["4", "32"],
        (
            "concurrency 33",
            "invalid value \"33\" in \"concurrency\" directive, it must be a number ",
        ),
    ),
    case(
        HTTP,
        "rate 30r/m",
        |c| show(c.rate),
        ["20.0", "0.5"],
        (
            "rate auto",
            "invalid value \"auto\" in \"rate\" directive, it must be a rate like \"20r/s\" ",
        ),
    ),
    case(
        HTTP,
        "timeout 500ms",
        |c| show(c.timeout),
        ["2s", "500ms"],
        (
            "timeout x",
            "invalid value \"x\" in \"timeout\" directive, it must be a time above 0 like ",
        ),
    ),
    case(
        HTTP,
        "header X-A b",
        |c| show(c.headers.iter().map(|(n, v)| (&**n, v.reveal())).collect::<Vec<_>>()),
        ["[]", "[(\"X-A\", \"b\")]"],
        ("header cookie x", "\"header\" directive cannot change \"cookie\""),
    ),
    case(
        "url https://127.0.0.1/me; map id userName",
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
            "\"tirreno_identity t\": \"ssl_certificate\" needs \"ssl_certificate_key\"",
        ),
    ),
    case(
        HTTPS,
        "ssl_certificate_key client.key; ssl_certificate client.pem",
        |c| has_tls(c, "certificate: Some("),
        ["false", "true"],
        (
            "ssl_certificate_key client.key",
            "\"tirreno_identity t\": \"ssl_certificate_key\" needs \"ssl_certificate\"",
        ),
    ),
];

#[test]
fn each_parameter_sets_what_it_says_and_refuses_what_is_wrong() {
    assert_each_parameter::<IdentityBlock>(&CASES.iter().collect::<Vec<_>>(), &["map", "header"]);
}

#[test]
fn what_the_block_does_not_take_is_refused() {
    let mut file = Written::new();
    let error = file.error::<IdentityBlock>("spool s");
    assert_eq!(error, "unknown directive \"spool\" in \"tirreno_identity\"");
    let error = file.read::<IdentityBlock>(&format!("{HTTP}; ssl_verify on")).unwrap_err();
    assert_eq!(error.message, "\"ssl_…\" need a \"url\" that begins with \"https://\"");
    assert_eq!(error.place.line, 1);
}
