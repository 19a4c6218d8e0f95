//! Documents: checked together, accepted as far as they are valid together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use weft_model::{Config, Diagnostic, Options, Problems, config, load_objects};
use weft_wire::{
    prost::Message,
    resource::{Object, object_name},
};

use super::state::{Accepted, Kind, Refusal, Rejected};

/// A document as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Document {
    version: Arc<str>,
    value: Bytes,
    text: Arc<str>,
}

/// What is wanted instead of what is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    This(Document),
    Gone,
    /// It came in a form that nobody can read. What is in force stays.
    Unusable,
}

/// Why something wanted is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reason {
    text: Arc<str>,
    /// A matter of this host, which may change without a word from the control plane.
    host: bool,
}

/// A configuration of documents, without registered endpoints.
#[derive(Debug, Clone)]
struct Candidate {
    config: Arc<Config>,
    warnings: Vec<Diagnostic>,
    /// The names in [`Objects::wanted`] that are in it.
    taken: BTreeSet<Arc<str>>,
}

/// The documents.
#[derive(Debug, Default)]
pub struct Objects {
    accepted: BTreeMap<Arc<str>, Document>,
    wanted: BTreeMap<Arc<str>, Wanted>,
    reasons: BTreeMap<Arc<str>, Reason>,
    /// Came since the last round.
    fresh: BTreeSet<Arc<str>>,
    /// Of what is accepted; `None` before there was any.
    base: Option<Arc<Config>>,
    candidate: Option<Candidate>,
    /// A round has begun, and its candidate is to be found.
    due: bool,
}

impl Objects {
    /// A version of an object.
    pub fn want(&mut self, name: &str, version: &str, value: &Bytes) {
        let text = match read(name, value) {
            Ok(text) => text,
            Err(reason) => return self.unusable(name, reason),
        };
        let document = Document { version: version.into(), value: Bytes::copy_from_slice(value), text };
        if self.accepted.get(name) == Some(&document) {
            self.forget(name);
            return;
        }
        self.set(name, Wanted::This(document));
    }

    /// It does not exist any more.
    pub fn remove(&mut self, name: &str) {
        if self.accepted.contains_key(name) {
            self.set(name, Wanted::Gone);
        } else {
            self.forget(name);
        }
    }

    /// What came under this name cannot be read.
    pub fn unusable(&mut self, name: &str, reason: String) {
        self.set(name, Wanted::Unusable);
        self.reject(&name.into(), &reason, false);
    }

    fn set(&mut self, name: &str, wanted: Wanted) {
        let name: Arc<str> = name.into();
        self.reasons.remove(&name);
        self.wanted.insert(name.clone(), wanted);
        self.fresh.insert(name);
    }

    fn forget(&mut self, name: &str) {
        self.wanted.remove(name);
        self.reasons.remove(name);
        self.fresh.remove(name);
    }

    fn reject(&mut self, name: &Arc<str>, reason: &str, host: bool) {
        let text = shortened(reason);
        self.reasons.insert(name.clone(), Reason { text, host });
    }

    /// Begins a round: everything wanted is tried again.
    pub fn begin(&mut self) {
        self.due = true;
    }

    /// Whether a round has begun.
    pub const fn is_due(&self) -> bool {
        self.due
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty() && self.wanted.is_empty()
    }

    /// Whether a matter of this host keeps something from being in force.
    pub fn has_refused(&self) -> bool {
        self.reasons.values().any(|reason| reason.host)
    }

    /// The configuration to be in force next, and what to know about it if it is new.
    pub fn candidate(&mut self) -> (Arc<Config>, Vec<Diagnostic>) {
        if std::mem::take(&mut self.due) {
            let tried = self.wanted.iter().filter(|(_, wanted)| **wanted != Wanted::Unusable);
            let tried: BTreeSet<Arc<str>> = tried.map(|(name, _)| name.clone()).collect();
            tried.iter().for_each(|name| drop(self.reasons.remove(name)));
            self.candidate = Some(self.find(tried));
        }
        match &mut self.candidate {
            Some(candidate) => (candidate.config.clone(), std::mem::take(&mut candidate.warnings)),
            None => (self.base.clone().unwrap_or_default(), Vec::new()),
        }
    }

    /// Whether this is another configuration than the accepted one.
    pub fn is_new(&self, config: &Arc<Config>) -> bool {
        self.base.as_ref().is_none_or(|base| !Arc::ptr_eq(base, config))
    }

    /// The most of `tried` that is valid together with the rest of what is accepted. Rejects the others.
    fn find(&mut self, mut tried: BTreeSet<Arc<str>>) -> Candidate {
        loop {
            if tried.is_empty()
                && let Some(base) = &self.base
            {
                return Candidate { config: base.clone(), warnings: Vec::new(), taken: tried };
            }
            match load_objects(&self.texts(&tried), Options::default()) {
                Ok(checked) => {
                    let config = self.shared(checked.config);
                    return Candidate { config, warnings: checked.warnings, taken: tried };
                }
                Err(problems) => self.drop_faulty(&mut tried, &problems),
            }
        }
    }

    /// Rejects at least one of `tried`; `tried` is empty only when nothing was accepted, and no documents are no mistake.
    fn drop_faulty(&mut self, tried: &mut BTreeSet<Arc<str>>, problems: &Problems) {
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for problem in problems {
            let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            reasons.entry(&problem.file).or_default().push(format!("{}{hint}", problem.message));
        }
        let mut faulty: Vec<(Arc<str>, String)> =
            tried.iter().filter_map(|name| Some((name.clone(), reasons.get(&**name)?.join("; ")))).collect();
        if faulty.is_empty() {
            // Something else does not go with them, most likely with what is gone. Who was rejected before is suspected
            // first.
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let reason = format!("with it, others are not valid any more: {}", all.join("; "));
            let older: Vec<Arc<str>> = tried.iter().filter(|name| !self.fresh.contains(*name)).cloned().collect();
            let blamed =
                if older.is_empty() || older.len() == tried.len() { tried.iter().cloned().collect() } else { older };
            faulty = blamed.into_iter().map(|name| (name, reason.clone())).collect();
        }
        for (name, reason) in faulty {
            tried.remove(&name);
            self.reject(&name, &reason, false);
        }
    }

    /// Every document, each with its name: those in `tried` as they are wanted, the others as they are accepted.
    fn texts(&self, tried: &BTreeSet<Arc<str>>) -> Vec<(String, String)> {
        let mut texts: BTreeMap<&Arc<str>, &Arc<str>> =
            self.accepted.iter().map(|(name, document)| (name, &document.text)).collect();
        for (name, wanted) in self.wanted.iter().filter(|(name, _)| tried.contains(*name)) {
            match wanted {
                Wanted::This(document) => drop(texts.insert(name, &document.text)),
                Wanted::Gone | Wanted::Unusable => drop(texts.remove(name)),
            }
        }
        texts.into_iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    /// With the very services of before, where they are the same: then nobody looks at them again.
    fn shared(&self, mut config: Config) -> Arc<Config> {
        let Some(base) = &self.base else { return Arc::new(config) };
        let before: HashMap<&config::Key, &Arc<config::Service>> =
            base.services.iter().map(|service| (&service.key, service)).collect();
        for service in &mut config.services {
            if let Some(same) = before.get(&service.key).filter(|same| **same == service) {
                *service = Arc::clone(same);
            }
        }
        if config == **base { base.clone() } else { Arc::new(config) }
    }

    /// The candidate is in force.
    pub fn agreed(&mut self, accepted: &mut Vec<Accepted>) {
        let Some(candidate) = self.candidate.take() else { return };
        self.base = Some(candidate.config);
        self.fresh.clear();
        for name in candidate.taken {
            let resource = match self.wanted.remove(&name) {
                Some(Wanted::This(document)) => {
                    let resource = (document.version.clone(), document.value.clone());
                    self.accepted.insert(name.clone(), document);
                    Some(resource)
                }
                Some(Wanted::Gone) => {
                    self.accepted.remove(&name);
                    None
                }
                Some(Wanted::Unusable) | None => continue,
            };
            accepted.push(Accepted { kind: Kind::Object, name, resource });
        }
    }

    /// The candidate cannot be in force on this host. False when none of the documents is to blame.
    pub fn refused(&mut self, refusal: &Refusal) -> bool {
        let Some(Candidate { mut taken, .. }) = self.candidate.take() else { return false };
        if taken.is_empty() {
            return false;
        }
        let mut blamed: Vec<(Arc<str>, &str)> = Vec::new();
        for blame in &refusal.blamed {
            let new = |group: &Vec<String>| -> Vec<Arc<str>> {
                taken.iter().filter(|name| group.iter().any(|suspect| **suspect == ***name)).cloned().collect()
            };
            let group = blame.suspects.iter().map(new).find(|group| !group.is_empty()).unwrap_or_default();
            blamed.extend(group.into_iter().map(|name| (name, &*blame.reason)));
        }
        if blamed.is_empty() {
            blamed = taken.iter().map(|name| (name.clone(), &*refusal.reason)).collect();
        }
        for (name, reason) in blamed {
            taken.remove(&name);
            self.reject(&name, reason, true);
        }
        self.candidate = Some(self.find(taken));
        true
    }

    /// What is not in force.
    pub fn rejected(&self) -> Vec<Rejected> {
        let rejected =
            |(name, reason): (&Arc<str>, &Reason)| Rejected { name: name.clone(), reason: reason.text.clone() };
        self.reasons.iter().map(rejected).collect()
    }

    /// What is.
    pub fn versions(&self) -> Vec<(Arc<str>, Arc<str>)> {
        self.accepted.iter().map(|(name, document)| (name.clone(), document.version.clone())).collect()
    }
}

/// The text of an object, if it is what it is called.
fn read(name: &str, value: &Bytes) -> Result<Arc<str>, String> {
    let object = Object::decode(&**value).map_err(|error| format!("it cannot be decoded: {error}"))?;
    let Object { kind, namespace, name: own, document } = &object;
    if object_name(kind, namespace, own) != name {
        return Err(format!("it says that it is {}", object_name(kind, namespace, own)));
    }
    let text = std::str::from_utf8(document).map_err(|_| "its document is not UTF-8".to_owned())?;
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("its document is not valid JSON: {error}"))?;
    let metadata = |field: &str| json["metadata"][field].as_str();
    let written = (json["kind"].as_str(), metadata("namespace").unwrap_or("default"), metadata("name"));
    if written != (Some(&**kind), &**namespace, Some(&**own)) {
        return Err("its document is about another object".into());
    }
    Ok(text.into())
}

/// A thousand mistakes are not read by anybody.
pub(super) fn shortened(reason: &str) -> Arc<str> {
    const MOST: usize = 2000;
    match reason.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", reason.get(..end).unwrap_or_default()).into(),
        None => reason.into(),
    }
}
