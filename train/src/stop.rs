//! Signals to stop: SIGTERM, which schedulers send before they take a machine away, and SIGINT, which
//! Ctrl-C sends. The first one asks; a second one ends the process at once. And SIGXFSZ, which stops nothing.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

/// A signal that asks a run to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// From a scheduler: the run is to be gone on with elsewhere.
    Terminate,
    /// From the user: what was to follow the run is not wanted either.
    Interrupt,
}

impl StopSignal {
    /// The name that users know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }
}

/// Lets a write beyond the system's limit of a file's size fail, as on a full disk: the signal that comes with
/// it would end the process without a word.
///
/// # Errors
/// When the system refuses.
pub fn outlive_file_limits() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::default()).map(|_| ())
}

/// The signals that may have come since [`listen`](Self::listen) was first called.
#[derive(Debug)]
pub struct StopSignals([(StopSignal, Arc<AtomicBool>); 2]);

static LISTENING: OnceLock<StopSignals> = OnceLock::new();

impl StopSignals {
    /// Listens from the first call on, for the rest of the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> io::Result<&'static Self> {
        if let Some(signals) = LISTENING.get() {
            return Ok(signals);
        }
        let signals = Self::register()?;
        Ok(LISTENING.get_or_init(|| signals))
    }

    fn register() -> io::Result<Self> {
        let any = Arc::new(AtomicBool::new(false));
        let listen = |signal, number| {
            let came = Arc::new(AtomicBool::new(false));
            // What looks at the flag must come before what sets it.
            flag::register_conditional_default(number, Arc::clone(&any))?;
            flag::register(number, Arc::clone(&any))?;
            flag::register(number, Arc::clone(&came))?;
            Ok::<_, io::Error>((signal, came))
        };
        Ok(Self([listen(StopSignal::Interrupt, SIGINT)?, listen(StopSignal::Terminate, SIGTERM)?]))
    }

    /// A signal that has come.
    pub fn came(&self) -> Option<StopSignal> {
        let mut all = self.0.iter();
        all.find(|(_, came)| came.load(Ordering::Relaxed)).map(|(signal, _)| *signal)
    }
}
