//! Host names as clients wrote them, with the routes that they lead to: a connection has the one that it used last, a
//! worker those that were used last by any. Each is valid for one generation of the route table.

use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;

use crate::routing::{Backend, HostMatch};
use crate::upstream::{LocalBackend, Upstreams};

use super::tls::ToHttps;

/// How many a worker has: enough for what most machines serve, and little where strangers choose the names.
const PLACES: usize = 256;

/// A resolved host name.
pub(crate) struct Memo {
    pub(crate) generation: u64,
    /// As the client wrote it: what was received is a slice of the read buffer, and would keep all of it.
    pub(crate) authority: Box<[u8]>,
    pub(crate) found: HostMatch,
    /// Where its requests come by https, of a client without TLS.
    pub(crate) https: Option<ToHttps>,
    /// The backend that was used last.
    last: RefCell<Option<Rc<LocalBackend>>>,
}

/// A memo, and the hash of its authority.
type Place = Option<(u64, Rc<Memo>)>;

/// Of an authority that was looked for in vain.
#[derive(Debug)]
pub(crate) struct Hash(u64);

/// What one worker resolved last for clients without TLS, each in the one place that its hash has.
pub(crate) struct Memos {
    places: RefCell<Box<[Place]>>,
    hasher: foldhash::fast::RandomState,
    swept: Cell<u64>,
}

impl Memo {
    pub(crate) fn new(
        generation: u64,
        authority: &HeaderValue,
        found: HostMatch,
        https: Option<ToHttps>,
    ) -> Self {
        let authority = authority.as_bytes().into();
        Self { generation, authority, found, https, last: RefCell::default() }
    }

    /// The local side of `backend`.
    pub(crate) fn backend(&self, backend: &Arc<Backend>, upstreams: &Upstreams) -> Rc<LocalBackend> {
        let mut last = self.last.borrow_mut();
        match &*last {
            Some(local) if Arc::ptr_eq(&local.backend, backend) => Rc::clone(local),
            Some(_) | None => Rc::clone(last.insert(upstreams.backend(backend))),
        }
    }
}

impl Memos {
    /// What `authority` led to in the table of that generation, or else the hash by which to [keep](Self::keep) it.
    pub(crate) fn find(&self, authority: &HeaderValue, generation: u64) -> Result<Rc<Memo>, Hash> {
        let hash = self.hasher.hash_one(authority.as_bytes());
        let places = self.places.borrow();
        let known = places[place_of(hash)].as_ref().filter(|(known, memo)| {
            *known == hash && memo.generation == generation && *memo.authority == *authority.as_bytes()
        });
        known.map(|(_, memo)| Rc::clone(memo)).ok_or(Hash(hash))
    }

    pub(crate) fn keep(&self, Hash(hash): Hash, memo: &Rc<Memo>) {
        self.places.borrow_mut()[place_of(hash)] = Some((hash, Rc::clone(memo)));
    }

    /// Forgets all when the generation is another one: they would only keep what they lead to.
    pub(crate) fn sweep(&self, generation: u64) {
        if self.swept.replace(generation) != generation {
            self.places.borrow_mut().fill(None);
        }
    }
}

impl Default for Memos {
    fn default() -> Self {
        Self {
            places: RefCell::new(vec![None; PLACES].into_boxed_slice()),
            hasher: foldhash::fast::RandomState::default(),
            swept: Cell::new(0),
        }
    }
}

fn place_of(hash: u64) -> usize {
    usize::try_from(hash % PLACES as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::Routing;
    use crate::routing::path::PathPrefix;
    use crate::routing::table::PathRoute;
    use crate::telemetry::BackendStats;

    #[test]
    fn a_memo_is_found_by_its_authority_and_generation_and_forgotten_with_it() {
        let routing = Routing::new(1);
        let backend = Arc::new(Backend::new(Box::default(), Arc::new(BackendStats::for_service("some", 1))));
        let route = PathRoute::new(PathPrefix::root(), backend);
        routing.publish(|edit| edit.set(&"*".parse().unwrap(), vec![route]));
        let (generation, found) = routing.resolve(&"a.test".parse().unwrap()).unwrap();
        let (memos, authority) = (Memos::default(), HeaderValue::from_static("a.test"));
        let memo = Rc::new(Memo::new(generation, &authority, found, None));
        memos.keep(memos.find(&authority, generation).err().unwrap(), &memo);
        memos.sweep(generation);
        memos.keep(memos.find(&authority, generation).err().unwrap(), &memo);
        assert!(memos.find(&authority, generation).is_ok_and(|found| Rc::ptr_eq(&found, &memo)));
        assert!(memos.find(&authority, generation + 1).is_err());
        assert!(memos.find(&HeaderValue::from_static("A.test"), generation).is_err());
        memos.sweep(generation);
        assert_eq!(Rc::strong_count(&memo), 2);
        memos.sweep(generation + 1);
        assert_eq!(Rc::strong_count(&memo), 1, "it keeps what nobody can find");
    }
}
