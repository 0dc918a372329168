//! The handler `tirreno_status`: the accounts as JSON. It reads shared memory only.

use core::ptr;

use chrono::{DateTime, SecondsFormat};
use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED, NGX_HTTP_OK,
    NGX_OK, ngx_buf_t, ngx_chain_t, ngx_create_temp_buf, ngx_http_discard_request_body,
    ngx_http_output_filter, ngx_http_request_t, ngx_http_send_header, ngx_int_t,
};
use ngx::http::HttpModuleMainConf;
use ngx::ngx_string;
use serde_json::{Map, Value, json};
use tirreno_pipeline::config::TargetConfig;
use tirreno_pipeline::shm::zone::Zone;

use crate::conf::MainConf;
use crate::{TirrenoModule, guarded};

/// Answers a request with the status.
pub(crate) unsafe extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    guarded(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx passes a request.
        let request = unsafe { &mut *r };
        if request.method as u32 & (NGX_HTTP_GET | NGX_HTTP_HEAD) == 0 {
            return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
        }
        // SAFETY: as above.
        let rc = unsafe { ngx_http_discard_request_body(r) };
        if rc != NGX_OK as ngx_int_t {
            return rc;
        }
        let Some(main) = TirrenoModule::main_conf(request) else {
            return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
        };
        // SAFETY: as above.
        unsafe { send(r, &json(main)) }
    })
}

fn json(main: &MainConf) -> String {
    let mut targets = Map::new();
    let mut skipped = Map::new();
    let mut identity = Map::new();
    if let Some(zone) = main.zone {
        for target in &main.targets {
            targets.insert(target.name.clone(), account(zone, target));
        }
        for (reason, count) in zone.skipped() {
            skipped.insert(reason.into(), count.into());
        }
        for (evidence, count) in zone.identified() {
            identity.insert(evidence.into(), count.into());
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    let status =
        json!({ "version": version, "targets": targets, "skipped": skipped, "identity": identity });
    format!("{status:#}\n")
}

fn account(zone: Zone, target: &TargetConfig) -> Value {
    let totals = zone.totals(target.slot);
    let fault = totals.last_fault;
    let mut account = json!({
        "type": target.destination.type_name(),
        "state": totals.state.name(),
        "captured": totals.captured,
        "delivered": totals.delivered,
        "rejected": totals.rejected,
        "dropped": totals.all_dropped(),
        "merged": totals.merged,
        "withdrawn": totals.withdrawn,
        "pending": totals.pending,
        "retries": totals.retries,
        "last_error": fault.map(|(fault, _)| fault.to_string()),
        "last_error_time": fault.and_then(|(_, ms)| DateTime::from_timestamp_millis(ms))
            .map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)),
        "oldest_pending_seconds": totals.oldest_pending_ms / 1000,
    });
    if target.spool.is_some() {
        let set_aside: Map<_, _> =
            totals.set_aside.iter().map(|(why, n)| (why.to_string(), (*n).into())).collect();
        account["spool"] = json!({
            "events": totals.stored.pending,
            "bytes": totals.stored.bytes,
            "drain_seconds": totals.drain_seconds,
            "set_aside": set_aside,
        });
    }
    account
}

/// # Safety
/// `r` is a request that nginx is processing.
unsafe fn send(r: *mut ngx_http_request_t, body: &str) -> ngx_int_t {
    // SAFETY: the caller's promise; nginx owns the buffer, which has room for the body.
    unsafe {
        let buf: *mut ngx_buf_t = ngx_create_temp_buf((*r).pool, body.len());
        let Some(buf) = buf.as_mut() else {
            return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
        };
        ptr::copy_nonoverlapping(body.as_ptr(), buf.pos, body.len());
        buf.last = buf.pos.add(body.len());
        buf.set_last_buf(1);
        buf.set_last_in_chain(1);

        let out = &mut (*r).headers_out;
        out.status = NGX_HTTP_OK as usize;
        out.content_length_n = body.len() as i64;
        out.content_type = ngx_string!("application/json");
        out.content_type_len = out.content_type.len;
        let rc = ngx_http_send_header(r);
        if rc != NGX_OK as ngx_int_t || (*r).header_only() == 1 {
            return rc;
        }
        let mut chain = ngx_chain_t { buf, next: ptr::null_mut() };
        ngx_http_output_filter(r, &mut chain)
    }
}
