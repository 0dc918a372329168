//! nginx module that records user activity in Tirreno.
//!
//! This crate is what touches nginx; everything else is in `tirreno-pipeline`:
//!
//! - [`directives`] has the directives, [`conf`] the configuration that they are read into,
//! - [`zone`] asks nginx for the shared memory,
//! - [`permissions`] tells whether the workers' user can use a file,
//! - [`request`] is the one safe view of a request,
//! - [`layout`] reads those parts of nginx's request that bindgen misplaces or that its versions have differently,
//!   through C,
//! - [`response`] is the view of a response, [`readers`] have what was read of bodies,
//! - [`exchange`] is a request with its answer, as rules and decisions see it,
//! - [`identity`] tells whose session a request belongs to, [`lookup`] asks the application,
//! - [`capture`] turns a request into a record, in the log phase or when a WebSocket opens,
//! - [`filters`] give bodies to the readers, as they pass,
//! - [`variables`] shows what became of a request,
//! - [`worker`] is what one worker process owns: its ring, its threads, its [`timer`],
//! - [`explain`] says for `ci/explain` what would become of a request,
//! - [`status`] answers `tirreno_status`.

use core::ffi::{c_char, c_void};
use core::ptr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nginx_sys::{
    NGX_HTTP_MODULE, ngx_conf_t, ngx_cycle_t, ngx_http_module_t, ngx_int_t, ngx_module_t,
    ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, Status};
use ngx::http::{HttpModule, HttpModuleLocationConf, HttpModuleMainConf};

use crate::conf::{LocationConf, MainConf};
use crate::directives::COMMANDS;

mod capture;
mod conf;
mod directives;
mod exchange;
mod explain;
mod filters;
mod identity;
mod layout;
mod lookup;
mod permissions;
mod readers;
mod request;
mod response;
mod status;
mod timer;
mod variables;
mod worker;
mod zone;

/// The module as a type, by which its configuration is found.
#[derive(Debug)]
struct TirrenoModule;

static MODULE_CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(preconfiguration),
    postconfiguration: Some(postconfiguration),
    create_main_conf: Some(TirrenoModule::create_main_conf),
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(TirrenoModule::create_loc_conf),
    merge_loc_conf: Some(merge_loc_conf),
};

/// The symbols that nginx looks up in a dynamic module's file. A module that is linked in has these tables from
/// nginx's build.
#[cfg(feature = "dynamic")]
mod tables {
    #![allow(non_upper_case_globals)]
    use core::ffi::c_char;
    use core::ptr;

    use super::{ngx_http_tirreno_module, ngx_module_t};

    /// Constant C strings.
    #[repr(transparent)]
    pub(crate) struct Names<const N: usize>([*const c_char; N]);

    // SAFETY: what they point to is constant.
    unsafe impl<const N: usize> Sync for Names<N> {}

    const NAME: *const c_char = c"ngx_http_tirreno_module".as_ptr();

    #[unsafe(no_mangle)]
    pub(crate) static mut ngx_modules: [*const ngx_module_t; 2] =
        [&raw const ngx_http_tirreno_module, ptr::null()];

    #[unsafe(no_mangle)]
    pub(crate) static ngx_module_names: Names<2> = Names([NAME, ptr::null()]);

    /// Placed before the copy filter and so called after it, as `HTTP_AUX_FILTER` modules are.
    #[unsafe(no_mangle)]
    pub(crate) static ngx_module_order: Names<3> =
        Names([NAME, c"ngx_http_copy_filter_module".as_ptr(), ptr::null()]);
}

/// What nginx loads, or links.
#[used]
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mut ngx_http_tirreno_module: ngx_module_t = ngx_module_t {
    ctx: ptr::addr_of!(MODULE_CONTEXT).cast_mut().cast(),
    // SAFETY: only the address is taken.
    commands: unsafe { ptr::addr_of_mut!(COMMANDS[0]) },
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_module: Some(init_module),
    init_process: Some(init_process),
    exit_process: Some(exit_process),
    ..ngx_module_t::default()
};

impl HttpModule for TirrenoModule {
    fn module() -> &'static ngx_module_t {
        // SAFETY: nginx writes to it only while it loads the module.
        unsafe { &*ptr::addr_of!(ngx_http_tirreno_module) }
    }
}

// SAFETY: `create_main_conf` makes a `MainConf`.
unsafe impl HttpModuleMainConf for TirrenoModule {
    type MainConf = MainConf;
}

// SAFETY: `create_loc_conf` makes a `LocationConf`.
unsafe impl HttpModuleLocationConf for TirrenoModule {
    type LocationConf = LocationConf;
}

/// Runs a callback's body; a panic must not cross into C. The hook that `worker` sets logs the panic's place.
fn guarded<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

extern "C" fn merge_loc_conf(
    cf: *mut ngx_conf_t,
    parent: *mut c_void,
    child: *mut c_void,
) -> *mut c_char {
    guarded(NGX_CONF_ERROR, || {
        // SAFETY: nginx passes the configurations that `create_loc_conf` made.
        let (cf, parent, child) = unsafe {
            (&mut *cf, &*parent.cast::<LocationConf>(), &mut *child.cast::<LocationConf>())
        };
        child.inherit(cf, parent)
    })
}

extern "C" fn preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guarded(Status::NGX_ERROR.into(), || {
        // SAFETY: nginx passes a valid configuration context.
        let added = variables::add(unsafe { &mut *cf });
        added.map_or_else(Into::into, |()| Status::NGX_OK.into())
    })
}

extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guarded(Status::NGX_ERROR.into(), || {
        // SAFETY: nginx passes a valid configuration context.
        let cf = unsafe { &mut *cf };
        let Some(main) = TirrenoModule::main_conf_mut(cf) else {
            return Status::NGX_ERROR.into();
        };
        if let Err(status) = main.check(cf) {
            return status.into();
        }
        if main.targets.is_empty() {
            return Status::NGX_OK.into();
        }
        main.realms = conf::realm::of_servers(cf);
        main.gather_secret_segments();
        if let Err(status) = zone::request(cf, main).and_then(|()| capture::install(cf, main)) {
            return status.into();
        }
        filters::install();
        Status::NGX_OK.into()
    })
}

extern "C" fn init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    guarded(Status::NGX_ERROR.into(), || {
        // SAFETY: nginx passes the cycle that is in force from now on.
        let cycle = unsafe { &*cycle };
        if let Some(main) = TirrenoModule::main_conf(cycle) {
            zone::announce(cycle.log, main);
        }
        // SAFETY: nginx has read the configuration, and has not begun to serve.
        unsafe { explain::run(cycle) };
        Status::NGX_OK.into()
    })
}

extern "C" fn init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    guarded(Status::NGX_ERROR.into(), || {
        // SAFETY: nginx passes the current cycle.
        let cycle = unsafe { &*cycle };
        if let Some(main) = TirrenoModule::main_conf(cycle) {
            worker::start(cycle, main);
            if worker::is_ready() {
                lookup::start(cycle, main);
            }
        }
        Status::NGX_OK.into()
    })
}

extern "C" fn exit_process(cycle: *mut ngx_cycle_t) {
    // The events that wait for a lookup go into the worker's ring.
    guarded((), lookup::stop);
    // SAFETY: nginx passes the current cycle.
    guarded((), || worker::stop(unsafe { &*cycle }));
}
