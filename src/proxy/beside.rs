//! A request that goes on beside its response, of a client of HTTP/1.1. hyper asks for the next of a response when the
//! client has taken what there was. The rest of the request does not wait for that: a client may send all before it reads.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use crate::upstream::{Connection, Stream};

use super::client::Client;

/// What a response comes over.
pub(crate) enum Responding<T> {
    Alone(Box<T>),
    /// Its request is not sent whole.
    Beside(Rc<RefCell<T>>),
}

/// What a request goes on over.
pub(crate) trait Sending {
    fn is_sent(&self) -> bool;
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Where a client's own task finds the request that goes on; it is gone with the response.
#[derive(Default)]
pub(crate) struct Beside(RefCell<Option<Weak<RefCell<dyn Sending>>>>);

impl<T: Sending + 'static> Responding<T> {
    pub(crate) fn new(sending: Box<T>, client: &Client) -> Self {
        // Of other protocols each stream is driven with its response.
        if sending.is_sent() || client.is_stream() {
            return Self::Alone(sending);
        }
        let shared = Rc::new(RefCell::new(*sending));
        let found: Weak<RefCell<T>> = Rc::downgrade(&shared);
        client.beside.0.replace(Some(found));
        Self::Beside(shared)
    }
}

impl<T> Responding<T> {
    pub(crate) fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        match self {
            Self::Alone(sending) => look(sending),
            Self::Beside(shared) => look(&shared.borrow()),
        }
    }

    pub(crate) fn with_mut<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        match self {
            Self::Alone(sending) => change(sending),
            Self::Beside(shared) => change(&mut shared.borrow_mut()),
        }
    }

    /// For itself again. The client's task has hold of what is shared only while it is at it: there always is one.
    pub(crate) fn into_inner(self) -> Option<Box<T>> {
        match self {
            Self::Alone(sending) => Some(sending),
            Self::Beside(shared) => Rc::into_inner(shared).map(|sending| Box::new(sending.into_inner())),
        }
    }
}

impl Beside {
    /// Has the request go on while its response is held up.
    pub(crate) fn drive(&self, cx: &mut Context<'_>) {
        let shared = self.0.borrow().as_ref().and_then(Weak::upgrade);
        if let Some(shared) = shared {
            // Whether it is over is seen by whoever asks for the next frame.
            let _over = shared.borrow_mut().poll_upload(cx);
        }
    }
}

impl Sending for Connection {
    fn is_sent(&self) -> bool {
        self.is_sent()
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_upload(cx)
    }
}

impl Sending for Stream {
    fn is_sent(&self) -> bool {
        self.is_sent()
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_upload(cx)
    }
}
