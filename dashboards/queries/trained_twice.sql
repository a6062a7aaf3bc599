-- Was any teacher trained more than once for the same network, label rows, seed and fold? No row means no.
SELECT study, name, seed, fold, stage_key, count(*) AS times
FROM stages
WHERE stage = 'teacher' AND NOT cache_hit
GROUP BY study, name, seed, fold, stage_key
HAVING count(*) > 1
ORDER BY study, name, seed, fold
