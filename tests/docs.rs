//! The documentation: its configurations pass `nginx -t`, its commands run or say why no test runs them, its links
//! have targets, and the reference has each directive, parameter and key, and no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tirreno_tests::client::get;
use tirreno_tests::nginx::Nginx;
use tirreno_tests::tls::Authority;
use tirreno_tests::wait::{SOON, wait_until};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The repository's pages.
fn pages() -> Vec<PathBuf> {
    fn collect(directory: &Path, pages: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, pages);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    let root = root();
    let mut pages: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    collect(&root.join("docs"), &mut pages);
    collect(&root.join("nginx-conf"), &mut pages);
    pages.sort();
    assert!(pages.len() > 20, "pages are gone: {pages:?}");
    pages
}

/// The blocks of a language in a page, with their lines' numbers.
fn blocks(page: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        let line = line.trim_start();
        match &mut open {
            None if line.strip_prefix("```") == Some(language) => {
                open = Some((number + 2, String::new()))
            }
            None => {}
            Some(_) if line == "```" => found.extend(open.take()),
            Some((_, text)) => *text += &format!("{line}\n"),
        }
    }
    found
}

/// The statements of a configuration at its outermost level.
fn statements(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut statement, mut depth, mut quote, mut comment) = (String::new(), 0, None, false);
    for c in text.chars() {
        match (c, quote) {
            ('\n', _) if comment => comment = false,
            _ if comment => continue,
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            ('#', None) if statement.is_empty() || statement.ends_with(char::is_whitespace) => {
                comment = true;
                continue;
            }
            ('{', None) if statement.ends_with(char::is_whitespace) => depth += 1,
            ('}', None) if statement.ends_with(char::is_whitespace) => depth -= 1,
            _ => {}
        }
        statement.push(c);
        if quote.is_none() && depth == 0 && (c == ';' || c == '}') {
            let whole = statement.trim().to_owned();
            statement.clear();
            // A brace inside a word does not end a statement.
            if c == ';' || whole.contains('{') {
                found.push(whole);
            } else {
                statement = whole;
            }
        }
    }
    assert!(statement.trim().is_empty(), "what is this: {statement}");
    found
}

/// Statements of the context `http`.
const HTTP: [&str; 9] = [
    "tirreno_target",
    "tirreno_zone",
    "tirreno_identity",
    "tirreno_state",
    "map",
    "log_format",
    "upstream",
    "server",
    "http",
];
/// Parameters of a target that pages show outside of a target.
const PARAMETERS: [&str; 4] = ["omit", "format", "framing", "max_message_size"];
/// The parameters that make a target complete.
const TIRRENO: &str = "url http://127.0.0.1:1/sensor/; api_key_file tirreno.key;";
/// Upstreams that pages use without defining them.
const UPSTREAMS: [&str; 2] = ["mattermost", "gitlab"];

/// A complete configuration with what a page shows.
fn complete(text: &str) -> (String, String) {
    let (mut http, mut server, mut target) = (String::new(), String::new(), String::new());
    let mut add = |statement: String| {
        let name = statement.split_whitespace().next().unwrap_or_default();
        let into = match name {
            "load_module" => return,
            _ if HTTP.contains(&name) => &mut http,
            _ if PARAMETERS.contains(&name) => &mut target,
            _ => &mut server,
        };
        *into += &format!("{statement}\n");
    };
    for statement in statements(text) {
        match statement.strip_prefix("http {") {
            Some(inner) => statements(inner.trim_end_matches('}')).into_iter().for_each(&mut add),
            None => add(statement),
        }
    }
    for name in UPSTREAMS {
        if text.contains(&format!("http://{name};")) && !text.contains(&format!("upstream {name} "))
        {
            http += &format!("upstream {name} {{ server 127.0.0.1:1; }}\n");
        }
    }
    if text.contains("tirreno") && !http.contains("tirreno_target") && target.is_empty() {
        http += &format!("tirreno_target {{ {TIRRENO} }}\n");
    }
    // What a page hides is for one target; each other parameter is tested in a target of its own.
    let (omits, others): (Vec<_>, Vec<_>) =
        target.lines().partition(|line| line.starts_with("omit "));
    let omits = omits.join(" ");
    for (number, parameter) in others.into_iter().chain([&*omits]).enumerate() {
        if parameter.is_empty() {
            continue;
        }
        let kind = match parameter.split(' ').next() {
            Some("omit") => TIRRENO,
            Some("format") => "type file; path %PREFIX%/logs/shown.log;",
            _ => "type syslog; server 127.0.0.1:1; transport tcp;",
        };
        http += &format!("tirreno_target shown{number} {{ {kind} {parameter} }}\n");
    }
    if text.contains("tirreno_verify  session") && !text.contains("bind=") {
        server +=
            "tirreno_event account_login POST /in status=2xx user=answer:id bind=answer:id;\n";
    }
    if text.contains("tirreno_lookup") && !text.contains("tirreno_session") {
        http += "tirreno_session cookie:sid;\n";
    }
    (http, server)
}

fn here(text: &str) -> String {
    let conf = root().join("nginx-conf");
    let lines: Vec<_> = text.lines().filter(|line| line.trim() != "…").collect();
    [
        ("/usr/share/ngx-tirreno", conf.to_str().unwrap()),
        ("/etc/nginx/", "%PREFIX%/"),
        ("/var/lib/nginx/", "%PREFIX%/state/"),
        ("/var/log/nginx-audit/", "%PREFIX%/logs/"),
        ("/var/log/nginx/", "%PREFIX%/logs/"),
    ]
    .iter()
    .fold(lines.join("\n") + "\n", |text, (there, here)| text.replace(there, here))
}

#[test]
fn configurations_pass() {
    let authority = Authority::new("docs");
    let (certificate, key) = authority.localhost().pem();
    let mut shown = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (line, block) in blocks(&text, "nginx") {
            let (http, server) = complete(&here(&block));
            let nginx = Nginx::builder()
                .clear_http()
                .file("tirreno-ca.crt", &authority.pem())
                .file("client.crt", &certificate)
                .file("client.key", &key)
                .file("tirreno.key", "test-key")
                .file("audit.key", &"0123456789abcdef".repeat(4))
                .file("users.key", &"0123456789abcdef".repeat(4))
                .file("state/tirreno/.keep", "")
                .http(&format!("{http}\nserver {{ listen 127.0.0.1:%PORT%;\n{server}\n}}"))
                .build();
            let (ok, output) = nginx.test();
            if !ok {
                wrong.push(format!("{}:{line}: {output}", page.display()));
            }
            shown += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(shown > 30, "{shown} configurations");
}

/// A line above a block of commands: the file that runs them, or why no test does.
const TESTED: &str = "<!-- tested: ";
const NOT_TESTED: &str = "<!-- not tested: ";

#[test]
fn commands_are_tested_or_say_why_not() {
    let mut found = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for at in (0..lines.len()).filter(|at| matches!(lines[*at], "```sh" | "```console")) {
            let place = format!("{}:{}", page.display(), at + 1);
            let marks = lines[..at].iter().rev().take_while(|line| line.starts_with("<!-- "));
            assert!(marks.clone().count() > 0, "{place}: nothing says whether it is tested");
            for mark in marks {
                let Some(file) = mark.strip_prefix(TESTED) else {
                    assert!(mark.starts_with(NOT_TESTED), "{place}: {mark}");
                    continue;
                };
                let by = root().join(file.trim_end_matches(" -->"));
                assert!(by.is_file(), "{place}: {mark}");
            }
            found += 1;
        }
    }
    assert!(found > 15, "{found} blocks");
}

/// Runs the commands of a page that this file tests, in a copy of what they are about. Returns their output.
fn run(page: &str, nginx: &Nginx, prepare: &str) -> String {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let mark = format!("{TESTED}tests/docs.rs -->\n```sh\n");
    let blocks = text.split(&mark).skip(1).map(|rest| rest.split("```").next().unwrap());
    let commands = here(&blocks.collect::<String>());
    assert!(!commands.trim().is_empty(), "{page} has no commands");
    let prefix = nginx.prefix().to_str().unwrap();
    let script = format!("set -eu\n{prepare}\n{commands}").replace("%PREFIX%", prefix);
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(nginx.prefix())
        .env("ROOT", root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn the_hash_of_a_name_can_be_computed() {
    let said = run("docs/privacy.md", &Nginx::builder().build(), "");
    let hash = said.trim_end().rsplit(' ').next().unwrap();
    assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{said}");
}

#[test]
fn a_spool_can_be_looked_into() {
    if !Path::new("/usr/bin/sqlite3").exists() {
        eprintln!("no sqlite3 here: not tested");
        return;
    }
    let nginx = Nginx::builder()
        .clear_http()
        .file("tirreno.key", "test-key")
        .file("state/.keep", "")
        .http(&format!(
            "tirreno_target {{ {TIRRENO} spool %PREFIX%/state/tirreno; }}
             server {{
                 listen 127.0.0.1:%PORT%;
                 location / {{ tirreno on; tirreno_anonymous on; }}
                 location = /status {{ tirreno_status; }}
             }}"
        ))
        .start();
    get(nginx.port(), "/waits", &[]).unwrap();
    let target = || nginx.status("/status")["targets"]["tirreno"].clone();
    wait_until(SOON, "the event in the spool", || target()["spool"]["events"] == 1);
    let shell = r#"
        FILE=$(echo "$PWD"/state/tirreno/*.db)
        sqlite3() { command sqlite3 -cmd '.timeout 10000' "${@/#FILE/$FILE}"; }
    "#;
    let named = r#"sqlite3 FILE "UPDATE pending SET user = 'somebody'""#;
    let said = run("docs/spool.md", &nginx, &format!("{shell}{named}"));
    assert!(said.contains(".db\n1|") && said.contains("eventType=page_view"), "{said}");
    let left = run("docs/spool.md", &nginx, shell);
    assert!(left.contains(".db\n0|"), "{left}");
    wait_until(SOON, "the deletion in the status", || target()["dropped"] == 1);
}

#[test]
fn the_guide_to_any_application_explains_its_rules() {
    let page = fs::read_to_string(root().join("docs/applications/any-application.md")).unwrap();
    let (_, rules) =
        blocks(&page, "nginx").into_iter().rfind(|(_, b)| b.contains("my_wiki")).unwrap();
    let nginx = Nginx::builder()
        .clear_http()
        .file("login.txt", "wpName=Ann&wpPassword=x")
        .file("edit.txt", "wpTextbox1=Hello")
        .http(&format!(
            "tirreno_target {{ url http://127.0.0.1:1/sensor/; api_key k; }}
             server {{ listen 127.0.0.1:%PORT%; server_name wiki.example.com; tirreno on; {rules} }}"
        ))
        .build();
    assert!(nginx.test().0);
    let port = nginx.port();
    let explain = format!(
        "ci/explain() {{
             shift
             \"$ROOT/ci/explain\" --nginx \"$TEST_NGINX_BINARY\" --prefix %PREFIX% %PREFIX%/nginx.conf \
                 \"${{@/wiki.example.com/wiki.example.com:{port}}}\"
         }}"
    );
    let said = run("docs/applications/any-application.md", &nginx, &explain);
    let events: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let types: Vec<_> = events.iter().map(|event| event.split(',').next().unwrap()).collect();
    assert_eq!(types, ["account_login", "account_login_fail", "page_edit"], "{said}");
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let here = page.parent().unwrap();
        for (start, _) in text.match_indices("](") {
            let link = text[start + 2..].split(')').next().unwrap();
            if link.starts_with("http") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = if path.is_empty() { page.clone() } else { here.join(path) };
            assert!(to.exists(), "{}: {link}", page.display());
            if !anchor.is_empty() {
                let target = fs::read_to_string(&to).unwrap();
                let found =
                    target.lines().any(|line| line.starts_with('#') && slug(line) == anchor);
                assert!(found, "{}: {link}: no such heading", page.display());
            }
        }
    }
}

/// A heading's anchor, as GitHub makes it.
fn slug(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

/// The code in the first cells of a page's tables.
fn first_cells(page: &str) -> BTreeSet<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The text between `before` and the next quote, for each occurrence in a source file.
fn quoted(file: &str, before: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let found: BTreeSet<_> = text
        .match_indices(before)
        .map(|(at, _)| text[at + before.len()..].split('"').next().unwrap().to_owned())
        .collect();
    assert!(!found.is_empty(), "{file} has no {before}");
    found
}

#[test]
fn the_reference_names_each_directive_and_variable() {
    let reference = fs::read_to_string(root().join("docs/reference.md")).unwrap();
    let directives = quoted("src/directives.rs", "ngx_string!(\"");
    let headings: BTreeSet<_> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|heading| heading.starts_with("tirreno"))
        .map(str::to_owned)
        .collect();
    assert_eq!(headings, directives);
    let rows = first_cells(&reference);
    let variables = rows.iter().filter_map(|cell| cell.strip_prefix('$'));
    let variables: BTreeSet<_> = variables.map(str::to_owned).collect();
    assert_eq!(variables, quoted("src/variables.rs", "ngx_string!(\""));
}

/// Whether a configuration of the page sets the directive or parameter.
fn has_example(page: &str, name: &str) -> bool {
    let is_set = |line: &str| {
        line.split_whitespace().any(|word| word.trim_end_matches(';') == name)
            && !line.trim_start().starts_with('#')
    };
    blocks(page, "nginx").iter().any(|(_, block)| block.lines().any(is_set))
}

#[test]
fn the_reference_tells_the_same_of_each_directive() {
    let reference = fs::read_to_string(root().join("docs/reference.md")).unwrap();
    for section in reference.split("\n### ").skip(1) {
        let name = section.lines().next().unwrap();
        let section = section.split("\n## ").next().unwrap();
        let head: Vec<_> = section.lines().skip(2).take(5).collect();
        let starts = [&*format!("Syntax: **{name}**"), "Default: ", "Context: ", "Since: ", ""];
        assert_eq!(head.len(), starts.len(), "{name}");
        for (line, start) in head.iter().zip(starts) {
            assert!(line.starts_with(start), "{name}: {line}");
        }
        assert!(section.lines().nth(7).is_some_and(|line| !line.is_empty()), "what is {name}?");
        assert!(has_example(section, name), "{name} has no example");
    }
}

#[test]
fn the_reference_names_each_parameter() {
    let page = |name| fs::read_to_string(root().join(name)).unwrap();
    let (reference, audit) = (page("docs/reference.md"), page("docs/audit.md"));
    let rows = |file: &str| {
        let source = fs::read_to_string(root().join(file)).unwrap();
        let calls = source.split("Parameter::").skip(1);
        let names = calls.filter_map(|call| call.split_once("(\"")?.1.split('"').next());
        names.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let tls = rows("pipeline/src/delivery/tls/parameters.rs");
    let mut parameters = tls.clone();
    for file in ["config/target.rs", "audit/parameters.rs", "privacy/parameters.rs"] {
        parameters.extend(rows(&format!("pipeline/src/{file}")));
    }
    parameters.extend(rows("pipeline/src/tirreno/parameters.rs"));
    assert!(parameters.len() > 40, "{parameters:?}");
    for name in &parameters {
        let row = format!("**{name}**");
        assert!(reference.contains(&row) || audit.contains(&row), "{name} is in no table");
        let is_shown = [&reference, &audit].iter().any(|page| has_example(page, name));
        assert!(is_shown, "{name} is in no example");
    }
    let bold = [&reference, &audit].map(|page| {
        let rows = page.lines().filter_map(|line| line.strip_prefix("| **")?.split(" | ").next());
        rows.flat_map(|row| row.split("**").step_by(2)).map(|name| name.to_owned())
    });
    for name in bold.into_iter().flatten() {
        assert!(parameters.contains(&name), "there is no {name}");
    }
    let identity = reference.split("### tirreno_identity").nth(1).unwrap();
    let identity = identity.split("### ").next().unwrap();
    for name in rows("pipeline/src/identity/parameters.rs").union(&tls) {
        assert!(identity.contains(&format!("`{name}`")), "{name} is not below tirreno_identity");
    }
}

#[test]
fn the_guide_to_rules_names_each_key() {
    let guide = fs::read_to_string(root().join("docs/rules.md")).unwrap();
    let keys = quoted("pipeline/src/capture/rule.rs", "            name: \"");
    assert!(keys.len() > 12, "{keys:?}");
    let rows = first_cells(&guide);
    let described = rows.iter().filter_map(|cell| Some(cell.split_once('=')?.0.to_owned()));
    let described: BTreeSet<_> = described.filter(|key| !key.is_empty()).collect();
    assert_eq!(described, keys);
}

#[test]
fn the_monitoring_guide_names_each_metric() {
    let guide = fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    let page = Nginx::builder()
        .file("tirreno.key", "test-key")
        .clear_http()
        .http(&format!(
            "tirreno_target {{ {TIRRENO} spool %PREFIX%/spool; }}
             server {{ listen 127.0.0.1:%PORT%; location / {{ tirreno_status; }} }}"
        ))
        .start();
    let metrics = get(page.port(), "/?format=prometheus", &[]).unwrap().text();
    let names: BTreeSet<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 10, "{metrics}");
    let mut described = first_cells(&guide);
    described.retain(|name| name.starts_with("tirreno_"));
    assert_eq!(described, names);
}
