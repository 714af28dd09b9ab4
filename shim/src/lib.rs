//! The host library: pods, images, stdio, state.
