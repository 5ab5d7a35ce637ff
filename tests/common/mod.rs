//! What the integration tests share.

#![allow(dead_code, reason = "each test uses a part of this")]

pub mod bucket;
pub mod containers;
pub mod crafted;
pub mod cxx;
pub mod dependants;
pub mod disks;
pub mod families;
pub mod models;
pub mod mounts;
pub mod objects;
pub mod places;
pub mod program;
pub mod quants;
pub mod random;
pub mod samples;
pub mod users;
pub mod web;
