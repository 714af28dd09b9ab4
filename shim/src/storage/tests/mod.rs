//! Tests of the whole way from an archive to a mounted tree. They own files and mount, so they need root (as CI has).

mod applying;
mod collecting;
mod hostile;
mod images;
mod kit;
mod mounting;
mod names;
mod users;
