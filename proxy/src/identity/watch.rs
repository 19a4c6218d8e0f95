//! Reloads certificates when their files change. Runs on the control runtime.

use std::{sync::Arc, time::SystemTime};

use super::{Identities, IdentityError};
use crate::source::dirs::DirWatch;

/// Watches the files of `identities` for as long as it is polled. `on_failure` is called once for each file that breaks,
/// after it has been logged: the place to count.
pub async fn watch(identities: Arc<Identities>, mut dirs: DirWatch, mut on_failure: impl FnMut(&IdentityError)) {
    loop {
        // Before looking at the files, so that a change while looking is seen the next time.
        dirs.watch(identities.files());
        let reloading = identities.clone();
        match tokio::task::spawn_blocking(move || reloading.reload(SystemTime::now())).await {
            Ok(reloaded) => {
                for certificate in &reloaded.replaced {
                    tracing::info!(%certificate, "certificate reloaded");
                }
                for error in &reloaded.failed {
                    tracing::error!(%error, hint = error.hint(), "certificate not reloaded; the old one stays in use");
                    on_failure(error);
                }
            }
            Err(error) => tracing::error!(%error, "a defect in Weft: reloading certificates failed; the old ones stay"),
        }
        tokio::select! {
            () = dirs.changed() => {}
            () = identities.applied.notified() => {}
        }
    }
}
