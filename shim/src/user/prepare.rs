//! Placing a container's files while its VM boots: its place in the image store, its root file system, its volumes, its spec.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinHandle;

use super::{
    plan::{Plan, Source},
    run::RunError,
    store_dir,
};
use crate::{
    journal::{Journal, Record},
    pod::{
        binds::{HostBind, ReadOnly},
        container, design, mount_table,
        place::{self, Corner},
        rootfs, spec,
    },
    storage::{Halt, ImageRef},
};

/// Takes the container's place in the image store, having written it down. Until [`keep`] it goes with the pod.
pub fn reserve(plan: &Plan, journal: &Journal) -> Result<Option<rootfs::Place>, RunError> {
    if let Source::Bundle { .. } = plan.source {
        return Ok(None);
    }
    let announce = || journal.record(&layer(plan, false));
    Ok(Some(rootfs::Place::take(&store_dir(), &plan.id, announce)?))
}

/// The container runs: what it writes stays, if the user wants to find it again.
pub fn keep(plan: &Plan, journal: &Journal) -> io::Result<()> {
    if plan.keep {
        journal.record(&layer(plan, true))
    } else {
        Ok(())
    }
}

fn layer(plan: &Plan, keep: bool) -> Record {
    Record::Layer {
        store: store_dir(),
        container: plan.id.to_string(),
        keep,
    }
}

/// A container being prepared on a thread of its own, so that what happens to its VM meanwhile is noticed.
pub struct Preparing {
    work: JoinHandle<Result<Vec<u8>, RunError>>,
    halt: Halt,
}

/// Work that is given up notices at its next read; no longer than this is it waited for.
const GIVING_UP: Duration = Duration::from_secs(2);

impl Preparing {
    /// Starts, in the runtime of the caller and in its mount namespace.
    pub fn start(plan: &Arc<Plan>, place: Option<rootfs::Place>, share: PathBuf) -> Self {
        let plan = Arc::clone(plan);
        let halt = place.as_ref().map(rootfs::Place::halt).unwrap_or_default();
        let work = tokio::task::spawn_blocking(move || prepare(&plan, place.as_ref(), &share));
        Self { work, halt }
    }

    /// The container's spec for the guest, unless `ended`, the end of its VM, comes first: that is the cause then, and
    /// the rest is given up.
    ///
    /// # Errors
    /// What can't be placed, or what `ended` says.
    pub async fn unless<E: Into<RunError>>(
        mut self,
        ended: impl Future<Output = E>,
    ) -> Result<Vec<u8>, RunError> {
        tokio::select! {
            // If both are true, the end is the cause.
            biased;
            end = ended => {
                self.halt.now();
                let _ = tokio::time::timeout(GIVING_UP, self.work).await;
                Err(end.into())
            }
            done = &mut self.work => match done {
                Ok(result) => result,
                Err(failed) => Err(RunError::Host("prepare the container", failed.into())),
            },
        }
    }
}

/// Places the container's files in the share, and writes its spec for the guest.
fn prepare(plan: &Plan, place: Option<&rootfs::Place>, share: &Path) -> Result<Vec<u8>, RunError> {
    let corner = Corner::make(share, &plan.id)?;
    let rootfs = Path::new("rootfs");
    let (spec, base) = match &plan.source {
        Source::Bundle {
            spec,
            dir,
            rootfs: source,
        } => {
            let bind = HostBind {
                source: source.clone(),
                target: design::rootfs_in_share(&plan.id),
                recursive: true,
                read_only: ReadOnly::Nothing,
                ids: None,
            };
            place::bind(&corner, rootfs, &bind)?;
            (spec.as_ref().clone(), dir.as_path())
        }
        Source::Image { image, .. } => {
            let spec = prepare_image(plan, place, image, &corner, rootfs)?;
            (spec, Path::new("/"))
        }
    };
    rootfs::make_working_dir(&corner.reopen(rootfs)?.proc_path(), &spec)?;
    let mut guest = design::for_guest(spec, &plan.id, base)?;
    guest.keep_writable_below(mount_table::has_mounts_below);
    for field in &guest.left_out {
        tracing::warn!("config.json: {field}");
    }
    for bind in &guest.binds {
        let target = bind
            .target
            .strip_prefix(plan.id.as_str())
            .unwrap_or(&bind.target);
        place::bind(&corner, target, bind)?;
    }
    container::spec_bytes(&guest.spec)
        .map_err(|error| RunError::Host("write the container's spec", error.into()))
}

fn prepare_image(
    plan: &Plan,
    place: Option<&rootfs::Place>,
    image: &ImageRef,
    corner: &Corner,
    rootfs: &Path,
) -> Result<oci_spec::runtime::Spec, RunError> {
    let (Source::Image { wishes, user, .. }, Some(place)) = (&plan.source, place) else {
        return Err(RunError::Host(
            "find the image store",
            io::ErrorKind::NotFound.into(),
        ));
    };
    let image = place.fill(image, &corner.make_dir(rootfs)?.proc_path())?;
    let mounted = corner.reopen(rootfs)?;
    let user = rootfs::user(&mounted.proc_path(), user.as_deref().unwrap_or(&image.user))?;
    place::write_etc_files(corner, &plan.hostname)?;
    Ok(spec::for_people(&plan.id, &image, wishes, &user)?)
}
