//! The module's shared memory, made by nginx.

use core::ffi::c_void;
use core::{mem, ptr};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nginx_sys::{
    NGX_LOG_EMERG, NGX_LOG_WARN, ngx_conf_t, ngx_core_conf_t, ngx_int_t, ngx_log_t, ngx_pagesize,
    ngx_shared_memory_add, ngx_shm_zone_t, ngx_slab_alloc, ngx_slab_pool_t, ngx_test_config,
};
use ngx::core::{CoreModuleMainConf, NgxCoreModule, Status};
use ngx::http::HttpModule;
use ngx::log::ngx_cycle_log;
use ngx::{ngx_log_error, ngx_string};
use tirreno_pipeline::audit::config::{AuditConfig, Sink};
use tirreno_pipeline::config::Destination;
use tirreno_pipeline::delivery::spool::{Database, lock};
use tirreno_pipeline::identity::state::{self, State, Step};
use tirreno_pipeline::shm::zone::Zone;

use crate::conf::MainConf;
use crate::permissions::{User, answers, check_directory, check_directory_of, check_file};
use crate::{TirrenoModule, guarded};

/// The default of `tirreno_zone`, and the step in which it grows: with a few more workers the size stays the
/// same, so that a reload keeps the zone.
const SIZE: usize = 16 << 20;

/// The default size for this number of workers: four segments for each.
fn default_size(workers: usize) -> usize {
    Zone::min_size(2 * workers).next_multiple_of(SIZE)
}

/// Requests the zone from nginx; it exists when [`init`] has run.
pub(crate) fn request(cf: &mut ngx_conf_t, main: &mut MainConf) -> Result<(), Status> {
    main.cycle = cf.cycle;
    let size = main.zone_size().unwrap_or_else(|| default_size(worker_processes(main)));
    let mut name = ngx_string!("tirreno");
    let tag = ptr::from_ref(TirrenoModule::module()).cast_mut().cast();
    // SAFETY: the context is valid, the name is static.
    let zone = unsafe { ngx_shared_memory_add(cf, &mut name, size, tag) };
    // SAFETY: nginx returns a zone that lives as long as the cycle, or null.
    let zone = unsafe { zone.as_mut() }.ok_or(Status::NGX_ERROR)?;
    zone.init = Some(init);
    zone.data = ptr::from_mut(main).cast();
    Ok(())
}

/// Runs in the master when the zone is mapped, and again at each reload.
extern "C" fn init(zone: *mut ngx_shm_zone_t, old: *mut c_void) -> ngx_int_t {
    guarded(Status::NGX_ERROR.into(), || {
        // SAFETY: nginx passes the zone; its data is what `request` put there.
        let (zone, main) = unsafe { (&mut *zone, &mut *(*zone).data.cast::<MainConf>()) };
        // SAFETY: the same module's data in the cycle before this.
        let old = unsafe { old.cast::<MainConf>().as_ref() };
        match prepare(zone, main, old.and_then(|old| old.zone)) {
            Ok(()) => Status::NGX_OK.into(),
            Err(message) => {
                ngx_log_error!(NGX_LOG_EMERG, ngx_cycle_log().as_ptr(), "tirreno: {message}");
                Status::NGX_ERROR.into()
            }
        }
    })
}

fn prepare(shm: &mut ngx_shm_zone_t, main: &mut MainConf, old: Option<Zone>) -> Result<(), String> {
    let workers = worker_processes(main);
    let least = Zone::min_size(workers);
    if shm.shm.size < least {
        let size = least.div_ceil(1024);
        return Err(match &main.zone_place {
            Some(place) => format!(
                "\"tirreno_zone\" is too small for {workers} worker processes, it must be at least \
                 \"{size}k\" in {place}"
            ),
            None => format!(
                "{workers} worker processes need more shared memory, write \"worker_processes\" \
                 before \"http\", or add \"tirreno_zone {size}k;\""
            ),
        });
    }
    let zone = match old {
        Some(zone) => zone,
        // SAFETY: nginx has set up the slab pool at the start of a new zone. Its one allocation
        // takes all pages and is never freed.
        None => unsafe {
            let pool = shm.shm.addr.cast::<ngx_slab_pool_t>();
            let len = (*pool).pfree * ngx_pagesize;
            let start = ngx_slab_alloc(pool, len);
            if start.is_null() {
                return Err("no memory in \"tirreno_zone\"".into());
            }
            Zone::format(start.cast(), len).ok_or("\"tirreno_zone\" is too small")?
        },
    };
    prepare_state(main, zone, old.is_none())?;
    let keys = zone.keys();
    main.lookup_mark = keys.mark(zone.instance());
    main.accounts = Some(zone.known_accounts(&keys));
    main.keys = Some(keys);
    check_spools(main)?;
    check_files(main)?;
    warn_of_consoles(main);
    let mut slots = 0;
    for target in &main.targets {
        slots |= zone.known_slot(&target.name).map_or(0, |slot| 1 << slot);
    }
    for target in &mut main.targets {
        target.slot = zone.target_slot(&target.name, slots).map_err(|_| {
            "too many targets are in use by workers of former configurations, which still have \
             connections: reload again when they are gone, or restart nginx"
                .to_owned()
        })?;
        slots |= 1 << target.slot;
    }
    main.running = Some(main.targets.as_slice().into());
    main.zone = Some(zone);
    Ok(())
}

/// `tirreno_state`: makes the file's key the zone's, and loads the file into a new zone.
fn prepare_state(main: &mut MainConf, zone: Zone, is_new: bool) -> Result<(), String> {
    let Some((path, place)) = &main.state else { return Ok(()) };
    let (file, in_place) = (state::file_of(path), |error: String| format!("{error} in {place}"));
    check_directory_of(&file, core_conf(main).and_then(User::of).as_ref()).map_err(in_place)?;
    let key_file = state::key_file_of(&file);
    let secret = match state::read_key(&key_file).map_err(in_place)? {
        Some(secret) => secret,
        // SAFETY: nginx sets it before it reads the configuration.
        None if unsafe { ngx_test_config } != 0 => return Ok(()),
        None => state::make_key(&key_file).map_err(in_place)?,
    };
    zone.set_secret(&secret);
    if is_new {
        let warn = |what: String| {
            ngx_log_error!(
                NGX_LOG_WARN,
                ngx_cycle_log().as_ptr(),
                "tirreno: \"{}\" {what}",
                file.display()
            );
        };
        match State::new(file.clone(), zone).load() {
            Err(error) => warn(format!("cannot be read: {error}; sessions are learned anew")),
            Ok(Step { foreign, .. }) if foreign > 0 => warn(format!(
                "has {foreign} entries that nginx has not written with this key; they do not count"
            )),
            Ok(_) => {}
        }
    }
    main.state_file = Some(file);
    Ok(())
}

/// Locks the spools that this instance captures for, so that the other instance knows of it during a binary
/// upgrade. The workers inherit the lock, and the kernel releases it with the last of them. Called when a
/// configuration is in force.
pub(crate) fn announce(log: *mut ngx_log_t, main: &MainConf) {
    static ANNOUNCED: Mutex<BTreeMap<(PathBuf, u64), File>> = Mutex::new(BTreeMap::new());
    // SAFETY: nginx sets it before it reads the configuration.
    let (Some(zone), 0) = (main.zone, unsafe { ngx_test_config }) else { return };
    zone.configure(main.targets.iter().fold(0, |targets, target| targets | 1 << target.slot));
    let mut announced = ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut before = mem::take(&mut *announced);
    for target in &main.targets {
        let (Some(spool), Destination::Tirreno(tirreno)) = (&target.spool, &target.destination)
        else {
            continue;
        };
        let url = tirreno.endpoint.sensor().to_string();
        let place = (Database::file(spool, &target.name, &url), zone.instance());
        let lock = match before.remove(&place) {
            Some(lock) => Ok(lock),
            None => lock::announce(&place.0, place.1),
        };
        match lock {
            Ok(lock) => drop(announced.insert(place, lock)),
            Err(error) => {
                ngx_log_error!(
                    NGX_LOG_WARN,
                    log,
                    "tirreno: the lock of \"{}\" cannot be used: {error}; during a binary upgrade, \
                     events may be sent out of order",
                    place.0.display()
                );
            }
        }
    }
}

/// nginx has made the spools' directories and given them to the workers' user, who may still not reach them.
fn check_spools(main: &MainConf) -> Result<(), String> {
    let user = core_conf(main).and_then(User::of);
    let spools = main.targets.iter().filter_map(|target| Some((target, target.spool.as_ref()?)));
    for (target, spool) in spools {
        check_directory(&spool.path, user.as_ref())
            .map_err(|error| format!("target \"{}\": {error} in {}", target.name, spool.place))?;
    }
    Ok(())
}

/// Files that workers write and rename: nginx does not make their directories.
fn check_files(main: &MainConf) -> Result<(), String> {
    let user = core_conf(main).and_then(User::of);
    let files = main.targets.iter().filter_map(|target| match &target.destination {
        Destination::Audit(AuditConfig { sink: Sink::File(file), .. }) => Some((target, file)),
        _ => None,
    });
    for (target, file) in files {
        if !answers(&file.path) {
            ngx_log_error!(
                NGX_LOG_WARN,
                ngx_cycle_log().as_ptr(),
                "tirreno: target \"{}\": the disk of \"{}\" does not answer: whether the workers can write \
                 there is not checked, in {}",
                target.name,
                file.path.display(),
                file.place
            );
            continue;
        }
        check_file(&file.path, user.as_ref())
            .map_err(|error| format!("target \"{}\": {error} in {}", target.name, file.place))?;
    }
    Ok(())
}

/// Warns of console targets: a daemon has no output.
fn warn_of_consoles(main: &MainConf) {
    if core_conf(main).is_some_and(|core| core.daemon == 0) {
        return;
    }
    for (name, place) in &main.consoles {
        ngx_log_error!(
            NGX_LOG_WARN,
            ngx_cycle_log().as_ptr(),
            "tirreno: target \"{name}\" of type \"console\" writes to nowhere without \"daemon off\" here or behind \"-g\", in {place}"
        );
    }
}

/// `worker_processes` of the configuration that is being put into force.
fn worker_processes(main: &MainConf) -> usize {
    let core = core_conf(main);
    core.map_or(1, |core| usize::try_from(core.worker_processes).unwrap_or(1).max(1))
}

/// nginx's own settings in the configuration that is being put into force.
fn core_conf(main: &MainConf) -> Option<&ngx_core_conf_t> {
    // SAFETY: the cycle that this configuration belongs to; its core module is set up by now.
    let cycle = unsafe { main.cycle.as_ref() };
    cycle.and_then(NgxCoreModule::main_conf)
}
