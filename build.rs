//! Tells the compiler which nginx this build is for.
//!
//! `nginx-sys` must stay a direct dependency: cargo hands the `DEP_NGINX_*`
//! variables to direct dependents only.

use std::env;

use cc::Build;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");

    // nginx unmaps a module when a configuration is replaced, but a thread may
    // still run the module's code.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");

    // `cfg(ngx_feature = "http_v2")` and `cfg(ngx_os = "linux")`, as in `ngx`.
    cfg_values("ngx_feature", "DEP_NGINX_FEATURES");
    cfg_values("ngx_os", "DEP_NGINX_OS");

    println!("cargo::rerun-if-changed=src/layout.c");
    let include = env::var_os("DEP_NGINX_INCLUDE").expect("nginx's headers");
    Build::new()
        .file("src/layout.c")
        .includes(env::split_paths(&include))
        .compile("tirreno_layout");
}

/// Passes on a list that `nginx-sys` found as values of one cfg, and from
/// `{variable}_CHECK` all values that it knows.
fn cfg_values(cfg: &str, variable: &str) {
    let known = env::var(format!("{variable}_CHECK")).unwrap_or_else(|_| "any()".into());
    println!("cargo::rustc-check-cfg=cfg({cfg}, values({known}))");
    for value in env::var(variable).unwrap_or_default().split(',').filter(|v| !v.is_empty()) {
        println!("cargo::rustc-cfg={cfg}=\"{value}\"");
    }
}
