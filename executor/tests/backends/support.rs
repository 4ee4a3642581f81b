//! What the tests share.

use std::future::Future;

use executor::{CoresConfig, IoChoice, LocalFuture, preflight};

/// False, with a line, where this machine does not allow this kind of I/O.
pub(crate) fn available(io: IoChoice) -> bool {
    match preflight(io, None) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// Runs a future on one core of this kind.
pub(crate) fn on<F: Future<Output = ()> + 'static>(io: IoChoice, test: impl FnOnce() -> F + Send + 'static) {
    if available(io) {
        executor::run_one(io, test);
    }
}

/// Runs `main` on several cores of this kind. A panic ends the test process.
pub(crate) fn on_cores(
    io: IoChoice,
    cores: usize,
    main: impl Fn(base::CoreId) -> LocalFuture<()> + Send + Sync + 'static,
) {
    if available(io) {
        let config = CoresConfig { cores, io, name: "test".to_owned(), seed: 1, ..CoresConfig::default() };
        executor::run_cores(config, main).expect("the cores start");
    }
}

/// Makes two tests of one async function: `uring::name` and `epoll::name`.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() { crate::support::on(executor::IoChoice::Uring, super::$name); })*
        }
        mod epoll {
            $(#[test] fn $name() { crate::support::on(executor::IoChoice::Epoll, super::$name); })*
        }
    };
}
pub(crate) use on_both;

/// Makes two tests of one function of an `IoChoice`.
macro_rules! with_both {
    ($($name:ident),* $(,)?) => {
        mod with_uring {
            $(#[test] fn $name() { super::$name(executor::IoChoice::Uring); })*
        }
        mod with_epoll {
            $(#[test] fn $name() { super::$name(executor::IoChoice::Epoll); })*
        }
    };
}
pub(crate) use with_both;
