//! Point by point, what stock clients and stores call on a placement driver: who asks, and what they depend on.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod global_config;
mod placement;
mod regions;
mod rest;
mod safe_points;
mod stores;
