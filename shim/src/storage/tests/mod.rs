//! Tests of the whole way from an archive to a mounted tree. Those that need root say so and stop.
