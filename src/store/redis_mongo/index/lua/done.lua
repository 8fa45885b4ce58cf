-- Leased jobs were settled in MongoDB: removes them from the index, and notes what they wait for next.
-- ARGV: now, streams, consumer, counts by (waiting, open, live, bytes), ring (1: others may have room now), then for each job: stream, entry, id,
-- which (leased: only if it is still leased to this worker; any: wherever it is by now), next stream, tenant,
-- next due_at (ms; -1: none).
even_when_full()
local now, consumer = tonumber(ARGV[1]), ARGV[3]
count(4, ARGV[1])
if not epoch() then return 0 end
local rung, removals = ARGV[8] == '1', {}
for i = 9, #ARGV, 7 do
  local stream, entry, id, due_at = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 6])
  if ARGV[i + 3] == 'any' then
    local where, name = place(id)
    if name then remove(where, {{name, id}}) end
  end
  removals[stream] = removals[stream] or {}
  table.insert(removals[stream], {entry, id})
  if due_at >= 0 then
    local next_stream, tenant = ARGV[i + 4], ARGV[i + 5]
    local first = redis.call('ZRANGE', key_of(next_stream, 'asleep'), 0, 0, 'WITHSCORES')
    rung = rung or not first[2] or tonumber(first[2]) > due_at
    if due_at > now then sleep(next_stream, tenant, ARGV[i + 6]) else take_turn(next_stream, tenant) end
  end
end
for stream, entries in pairs(removals) do remove(stream, leased_by(stream, entries, consumer)) end
if rung then ring(MAYBE) end
return 1
