//! A request that goes on beside its response, of a client of HTTP/1.1. hyper asks for the next of a response when the
//! client has taken what there was. The rest of the request does not wait for that: a client may send all before it reads.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::task::Context;

use crate::upstream::Connection;

/// A connection on which a response comes.
pub(crate) enum Responding {
    Alone(Box<Connection>),
    /// Its request is not sent whole.
    Beside(Rc<RefCell<Box<Connection>>>),
}

/// Where a client's own task finds the request that goes on; it is gone with the response.
#[derive(Default)]
pub(crate) struct Beside(RefCell<Weak<RefCell<Box<Connection>>>>);

impl Responding {
    pub(crate) fn new(connection: Box<Connection>, beside: &Beside) -> Self {
        if connection.is_sent() {
            return Self::Alone(connection);
        }
        let shared = Rc::new(RefCell::new(connection));
        beside.0.replace(Rc::downgrade(&shared));
        Self::Beside(shared)
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&Connection) -> T) -> T {
        match self {
            Self::Alone(connection) => look(connection),
            Self::Beside(shared) => look(&shared.borrow()),
        }
    }

    pub(crate) fn with_mut<T>(&mut self, change: impl FnOnce(&mut Connection) -> T) -> T {
        match self {
            Self::Alone(connection) => change(connection),
            Self::Beside(shared) => change(&mut shared.borrow_mut()),
        }
    }

    /// The connection itself. The client's task has hold of a shared one only while it is at it: there always is one.
    pub(crate) fn into_connection(self) -> Option<Box<Connection>> {
        match self {
            Self::Alone(connection) => Some(connection),
            Self::Beside(shared) => Rc::into_inner(shared).map(RefCell::into_inner),
        }
    }
}

impl Beside {
    /// Has the request go on while its response is held up.
    pub(crate) fn drive(&self, cx: &mut Context<'_>) {
        if let Some(shared) = self.0.borrow().upgrade() {
            // Whether it is over is seen by whoever asks for the next frame.
            let _over = shared.borrow_mut().poll_upload(cx);
        }
    }
}
