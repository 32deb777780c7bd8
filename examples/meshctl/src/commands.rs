//! One file per subcommand. Each has `Arguments` and `run`, which returns what goes to standard output.

pub(crate) mod check_inject;
pub(crate) mod inject;
pub(crate) mod uninject;
