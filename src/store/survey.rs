//! What can be told of a cache directory from outside, whoever holds it.

use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::options::{Floor, Options};

/// Whether larder can keep its cache there, as this user; says how much room there is. Changes nothing.
///
/// # Errors
/// It cannot, or not all of it; says in one line why and what to do.
pub fn survey(options: &Options) -> Result<String, String> {
    // What is not there yet will be made in the nearest directory that is.
    let dir = options.dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let shown = dir.display();
    access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("{shown} cannot be written: {error}; give it to larder's user, or another as cache.dir"))?;
    let space = statvfs(dir).map_err(|error| format!("{shown}: {error}"))?;
    let (free, all) = (space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize);
    let floor = match options.min_free {
        Floor::Bytes(bytes) => bytes,
        Floor::Percent(percent) => all / 100 * u64::from(percent),
    };
    let [free_shown, all_shown] = [free, all].map(bytesize::ByteSize::b);
    if options.max_size.as_u64() > all.saturating_sub(floor) {
        return Err(format!(
            "{shown} is on a disk of {all_shown}, which with min_free has no room for cache.max_size ({}); set that lower",
            options.max_size
        ));
    }
    if free < floor {
        return Err(format!("{shown} has {free_shown} free, less than cache.min_free: the cache would shrink; make room there"));
    }
    Ok(format!("{shown} can be written; {free_shown} of {all_shown} are free, and cache.max_size is {}", options.max_size))
}
