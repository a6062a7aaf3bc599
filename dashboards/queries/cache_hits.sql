-- Why was a stage computed and not taken from the cache? One row per kind of stage and reason.
SELECT study, stage, reason, cache_hit, count(*) AS times, count(DISTINCT stage_key) AS stages, sum(cpu_s) AS cpu_s
FROM stages
GROUP BY study, stage, reason, cache_hit
ORDER BY study, stage, times DESC, reason
