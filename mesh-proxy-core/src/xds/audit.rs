//! Every field of a message is obeyed, known to be without effect here, or refused when it is set.
//!
//! [`fields!`] names all fields of a message; one that is forgotten, or that a new version of the message brings, does
//! not compile. So a configuration is never accepted and then not acted on.

use std::fmt::Debug;

use super::{Result, unsupported};

/// Longest value that an error repeats.
const MOST: usize = 80;

/// Sorts the fields of a message:
///
/// - `obeyed`: the conversion reads them;
/// - `ignored`: what they ask for is given anyway, or changes nothing that a request can see (statistics, tuning);
/// - `refused`: an error when they are set at all;
/// - `refused_if_true`: wrappers of booleans, which may be set to false;
/// - `secret`: refused without repeating their value.
macro_rules! fields {
    ($message:expr => $type:path {
        obeyed: [$($obeyed:ident),* $(,)?],
        $(ignored: [$($ignored:ident),* $(,)?],)?
        $(refused: [$($refused:ident),* $(,)?],)?
        $(refused_if_true: [$($wrapped:ident),* $(,)?],)?
        $(secret: [$($secret:ident),* $(,)?],)?
    }) => {{
        #[allow(deprecated, reason = "old fields are still on the wire")]
        let $type {
            $($obeyed: _,)*
            $($($ignored: _,)*)?
            $($($refused,)*)?
            $($($wrapped,)*)?
            $($($secret,)*)?
        } = $message;
        $($($crate::xds::audit::refuse(stringify!($refused), $refused)?;)*)?
        $($($crate::xds::audit::refuse_true(stringify!($wrapped), *$wrapped)?;)*)?
        $($($crate::xds::audit::refuse_quietly(stringify!($secret), $secret)?;)*)?
    }};
}

pub(super) use fields;

/// Refuses a field that is set.
pub(super) fn refuse<T: Default + PartialEq + Debug>(field: &str, value: &T) -> Result<()> {
    if *value == T::default() {
        return Ok(());
    }
    let mut text = format!("{value:?}");
    if text.len() > MOST {
        let end = (0..=MOST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    Err(unsupported(field, text))
}

/// Refuses a boolean wrapper that is true.
pub(super) fn refuse_true(field: &str, value: Option<bool>) -> Result<()> {
    if value == Some(true) { Err(unsupported(field, "true")) } else { Ok(()) }
}

/// Refuses a field that is set and may hold a secret.
pub(super) fn refuse_quietly<T: Default + PartialEq>(field: &str, value: &T) -> Result<()> {
    if *value == T::default() { Ok(()) } else { Err(unsupported(field, "this setting")) }
}
