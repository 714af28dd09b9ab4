//! The signals that a user may send us, in the order in which they came.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The container's init process is to have this signal.
    Forward(u32),
    /// The terminal has another size.
    Resize,
}

/// The stream of signals, from its making on: before, they do what they always do.
#[derive(Debug)]
pub struct Signals(mpsc::UnboundedReceiver<Wish>);

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// As sigaction(2) says.
    pub fn listen() -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let forwarded = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        for kind in forwarded {
            let number = kind.as_raw_value().cast_unsigned();
            pass_on(signal(kind)?, Wish::Forward(number), sender.clone());
        }
        pass_on(signal(SignalKind::window_change())?, Wish::Resize, sender);
        Ok(Self(receiver))
    }

    /// The next one.
    pub async fn next(&mut self) -> Wish {
        match self.0.recv().await {
            Some(wish) => wish,
            None => std::future::pending().await,
        }
    }
}

fn pass_on(mut source: Signal, wish: Wish, sender: mpsc::UnboundedSender<Wish>) {
    tokio::spawn(
        async move { while source.recv().await.is_some() && sender.send(wish).is_ok() {} },
    );
}
