//! Blocks with parameters of their own, like `tirreno_target { … }`, read by nginx for the pipeline.

use core::ffi::{c_char, c_void};
use core::ptr;
use std::path::{Path, PathBuf};

use nginx_sys::{
    ngx_add_path, ngx_command_t, ngx_conf_include, ngx_conf_parse, ngx_conf_t, ngx_path_t,
    ngx_pcalloc, ngx_str_t,
};
use ngx::core::{CoreModuleMainConf, NGX_CONF_ERROR, NGX_CONF_OK, NgxCoreModule, Status};
use tirreno_pipeline::capture::rule::Place;
use tirreno_pipeline::config::block::{Block, Reader};
use tirreno_pipeline::config::file::ConfigFile;

use super::ext::{ConfExt, full_name, parse_size, parse_time_ms, parse_time_s, to_path};
use crate::guarded;
use crate::permissions::{answers, check_spool};

/// Reads the block of that name that follows.
///
/// # Errors
/// What nginx returns for it, when it has said what is wrong.
pub(crate) fn read<B: Block>(cf: &mut ngx_conf_t, name: &str) -> Result<B::Config, *mut c_char> {
    let reader = Reader::<B>::new(&File(cf), name);
    let mut reader = reader.map_err(|message| cf.error(message))?;
    let mut inner = *cf;
    inner.handler = Some(parameter::<B>);
    inner.handler_conf = ptr::addr_of_mut!(reader).cast();
    // SAFETY: `inner` is a copy of a valid context, as nginx's own block directives make it.
    let rc = unsafe { ngx_conf_parse(&mut inner, ptr::null_mut()) };
    if rc != NGX_CONF_OK {
        return Err(rc);
    }
    let config = reader.finish(&mut File(cf));
    config.map_err(|error| cf.error_at(&error.place, error.message))
}

extern "C" fn parameter<B: Block>(
    cf: *mut ngx_conf_t,
    cmd: *mut ngx_command_t,
    reader: *mut c_void,
) -> *mut c_char {
    guarded(NGX_CONF_ERROR, || {
        // SAFETY: nginx passes the context that `read` made.
        let cf = unsafe { &mut *cf };
        let args: Vec<_> = cf.args().iter().map(ngx_str_t::as_bytes).collect();
        if let [b"include", _] = *args {
            // SAFETY: as in nginx's own blocks with a handler; it comes back here.
            return unsafe { ngx_conf_include(cf, cmd, reader) };
        }
        // SAFETY: the reader that `read` put into the context.
        let reader = unsafe { &mut *reader.cast::<Reader<B>>() };
        match reader.set(&mut File(cf), args[0], &args[1..]) {
            Ok(()) => NGX_CONF_OK,
            Err(message) => cf.error(message),
        }
    })
}

/// The file that nginx reads.
struct File<'a>(&'a mut ngx_conf_t);

impl ConfigFile for File<'_> {
    fn place(&self) -> Place {
        self.0.place()
    }

    fn warn(&mut self, message: &str) {
        self.0.warn(message);
    }

    fn warn_at(&mut self, place: &Place, message: &str) {
        self.0.warn_at(place, message);
    }

    fn full_name(&mut self, name: &[u8]) -> Result<PathBuf, String> {
        let name = full_name(self.0, name, true).ok_or("no memory for a path")?;
        Ok(to_path(name))
    }

    fn prefix_name(&mut self, name: &[u8]) -> Result<PathBuf, String> {
        Ok(self.0.prefix_name(name).ok_or("no memory for a path")?)
    }

    fn claim_directory(&mut self, name: &[u8]) -> Result<PathBuf, String> {
        let path = add_path(self.0, name).ok_or("the spool's path cannot be used")?;
        // SAFETY: nginx sets the cycle before it reads a configuration.
        let core = unsafe { self.0.cycle.as_ref() }.and_then(NgxCoreModule::main_conf);
        check_spool(&path, core)?;
        Ok(path)
    }

    fn answers(&self, path: &Path) -> bool {
        answers(path)
    }

    fn parse_time_ms(&self, text: &[u8]) -> Option<u64> {
        parse_time_ms(text)
    }

    fn parse_time_s(&self, text: &[u8]) -> Option<u64> {
        parse_time_s(text)
    }

    fn parse_size(&self, text: &[u8]) -> Option<usize> {
        parse_size(text)
    }
}

/// Has nginx make a directory, relative to its prefix, and give it to the workers' user, as it does with those for
/// its temporary files.
fn add_path(cf: &mut ngx_conf_t, name: &[u8]) -> Option<PathBuf> {
    let mut name = name;
    // As in nginx's own path directives.
    while let [_, .., b'/'] = name {
        name = &name[..name.len() - 1];
    }
    let name = full_name(cf, name, false)?;
    // SAFETY: the pools hold the path and its name. nginx reads the path, zeroed but for what its own directives
    // set too, as long as the cycle lives.
    unsafe {
        let mut made = ngx_pcalloc(cf.pool, size_of::<ngx_path_t>()).cast::<ngx_path_t>();
        let path = made.as_mut()?;
        path.name = name;
        if let Some(file) = cf.conf_file.as_ref() {
            path.conf_file = file.file.name.data;
            path.line = file.line;
        }
        let rc = ngx_add_path(cf, &mut made);
        Status(rc).is_ok().then(|| to_path(name))
    }
}
