-- How good were the teachers, and what did they cost? One row per network.
SELECT name, count(*) AS trained, avg(metrics.validation_accuracy) AS validation_accuracy, sum(cpu_s) AS cpu_s
FROM stages
WHERE stage = 'teacher' AND NOT cache_hit
GROUP BY name
ORDER BY validation_accuracy DESC
