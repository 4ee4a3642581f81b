//! The same tests on io_uring and on epoll. Where io_uring is forbidden, its half says so and passes.

mod blocking;
mod files;
mod mailbox;
mod net;
mod process;
mod support;
mod tasks;
mod time;
