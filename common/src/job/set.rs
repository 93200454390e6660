//! The job files a process holds, by name and hash.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Job, Problems};
use crate::ids::{JobHash, JobName};

/// The job files a process holds; several versions of one name may be among them.
#[derive(Debug, Clone, Default)]
pub struct JobSet(BTreeMap<(JobName, JobHash), Arc<Job>>);

/// A folder that can't be taken as a set of jobs. Its `Display` has a line for each problem of each file.
#[derive(Debug)]
pub enum JobFolderError {
    /// The folder can't be read.
    Read(PathBuf, io::Error),
    /// There is no job file in it.
    Empty(PathBuf),
    /// Files with problems, in order of their names.
    Problems(Vec<Problems>),
    /// Two files with the same name and the same stages: which one's limits hold could not be said.
    Twice(PathBuf, PathBuf),
}

impl fmt::Display for JobFolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(folder, error) => write!(f, "{}: can't be read: {error}", folder.display()),
            Self::Empty(folder) => write!(f, "{}: holds no job file (*.toml)", folder.display()),
            Self::Problems(files) => {
                let lines: Vec<String> = files.iter().map(Problems::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Twice(one, other) => {
                write!(f, "{} and {} are the same job: keep one of them", one.display(), other.display())
            }
        }
    }
}

impl std::error::Error for JobFolderError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(_, error) => Some(error),
            Self::Empty(_) | Self::Problems(_) | Self::Twice(..) => None,
        }
    }
}

impl JobSet {
    /// A set of these jobs. Of two with the same name and hash the later one counts.
    pub fn from_jobs(jobs: impl IntoIterator<Item = Job>) -> Self {
        Self(jobs.into_iter().map(|job| ((job.name.clone(), job.hash.clone()), Arc::new(job))).collect())
    }

    /// Every `*.toml` directly in a folder, but hidden ones. Errors with the problems of all files at once.
    pub fn load_folder(folder: &Path) -> Result<Self, JobFolderError> {
        let unreadable = |error| JobFolderError::Read(folder.to_owned(), error);
        let mut paths = Vec::new();
        for entry in folder.read_dir().map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
        let (mut jobs, mut problems) = (Vec::new(), Vec::new());
        for path in &paths {
            match Job::load(path) {
                Ok(job) => jobs.push(job),
                Err(found) => problems.push(found),
            }
        }
        if !problems.is_empty() {
            return Err(JobFolderError::Problems(problems));
        }
        if jobs.is_empty() {
            return Err(JobFolderError::Empty(folder.to_owned()));
        }
        Self::without_doubles(jobs)
    }

    fn without_doubles(jobs: Vec<Job>) -> Result<Self, JobFolderError> {
        let mut set = BTreeMap::new();
        for job in jobs {
            match set.entry((job.name.clone(), job.hash.clone())) {
                Entry::Vacant(place) => {
                    place.insert(Arc::new(job));
                }
                Entry::Occupied(first) => {
                    return Err(JobFolderError::Twice(first.get().path.clone(), job.path));
                }
            }
        }
        Ok(Self(set))
    }

    /// The job of this name and hash.
    pub fn get(&self, name: &JobName, hash: &JobHash) -> Option<&Arc<Job>> {
        self.0.get(&(name.clone(), hash.clone()))
    }

    /// Every job, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn job(name: &str, filter: &str) -> String {
        format!(
            "name = '{name}'\n[source]\ntype = 'json'\npath = '-'\n[[stage]]\ntype = 'jq'\nfilter = '{filter}'\n"
        )
    }

    #[test]
    fn a_folder_of_job_files_holds_several_versions_of_a_job() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in
            [("b.toml", job("b", ".")), ("a1.toml", job("a", ".")), ("a2.toml", job("a", ".x"))]
        {
            fs::write(folder.path().join(file), text).unwrap();
        }
        fs::write(folder.path().join(".hidden.toml"), "no job").unwrap();
        fs::write(folder.path().join("notes.txt"), "no job").unwrap();
        let set = JobSet::load_folder(folder.path()).unwrap();
        assert_eq!(set.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["a", "a", "b"]);
        for job in set.iter() {
            assert_eq!(set.get(&job.name, &job.hash), Some(job));
        }
    }

    #[test]
    fn the_problems_of_all_files_come_at_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.toml"), job("a", ".[")).unwrap();
        fs::write(folder.path().join("b.toml"), job("not a name", ".")).unwrap();
        fs::write(folder.path().join("c.toml"), job("c", ".")).unwrap();
        let error = JobSet::load_folder(folder.path()).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert!(error.contains("a.toml:7: `filter`") && error.contains("b.toml:1: `name`"), "{error}");
    }

    #[test]
    fn an_empty_folder_and_the_same_job_twice_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(JobSet::load_folder(folder.path()), Err(JobFolderError::Empty(_))));
        fs::write(folder.path().join("a.toml"), job("a", ".")).unwrap();
        fs::write(folder.path().join("b.toml"), job("a", ".")).unwrap();
        let error = JobSet::load_folder(folder.path()).unwrap_err();
        assert!(matches!(&error, JobFolderError::Twice(..)), "{error}");
        let missing = folder.path().join("none");
        assert!(matches!(JobSet::load_folder(&missing), Err(JobFolderError::Read(..))));
    }
}
