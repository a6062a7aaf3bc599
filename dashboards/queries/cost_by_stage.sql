-- Where did the CPU seconds go, and what did sharing spare? One row per kind of stage.
SELECT study, stage, count(*) FILTER (NOT cache_hit) AS computed, count(*) FILTER (cache_hit) AS from_cache,
       coalesce(sum(cpu_s) FILTER (NOT cache_hit), 0) AS cpu_s_spent,
       coalesce(sum(cpu_s) FILTER (cache_hit), 0) AS cpu_s_spared
FROM stages
GROUP BY study, stage
ORDER BY study, cpu_s_spent DESC
