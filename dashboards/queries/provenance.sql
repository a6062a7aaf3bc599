-- With what was every study computed? Code, versions, machine, threads and command; one row per revision.
SELECT study, revision, created_at, git_commit, git_dirty, package_version, python, torch, versions_json,
       constraints_hash, data_fingerprint, seed, host, hardware_json, threads, environment_json, command
FROM studies
ORDER BY study, revision
