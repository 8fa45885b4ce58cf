-- Leased jobs were settled in MongoDB: takes them out of the index, and notes what they wait for next.
-- ARGV: now, lines, consumer, counts by (waiting, open, live), ring (1: others may have room now), then for each job: line, entry, id,
-- which (leased: only if it is still leased to this worker; any: wherever it is by now), next line, tenant,
-- next due_at (ms; -1: none).
even_when_full()
local now, consumer = tonumber(ARGV[1]), ARGV[3]
count(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
redis.call('HSET', counts, 'settled_at', ARGV[1])
if not epoch() then return 0 end
local rung, removals = ARGV[7] == '1', {}
for i = 8, #ARGV, 7 do
  local line, entry, id, due_at = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 6])
  if ARGV[i + 3] == 'any' then
    local where, name = place(id)
    if name then remove(where, {{name, id}}) end
  end
  removals[line] = removals[line] or {}
  table.insert(removals[line], {entry, id})
  if due_at >= 0 then
    local next_line, tenant = ARGV[i + 4], ARGV[i + 5]
    local first = redis.call('ZRANGE', of(next_line, 'asleep'), 0, 0, 'WITHSCORES')
    rung = rung or not first[2] or tonumber(first[2]) > due_at
    if due_at > now then sleep(next_line, tenant, ARGV[i + 6]) else take_turn(next_line, tenant) end
  end
end
for line, entries in pairs(removals) do remove(line, leased_by(line, entries, consumer)) end
if rung then ring() end
return 1
