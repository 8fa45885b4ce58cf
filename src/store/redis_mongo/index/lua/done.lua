-- Leased jobs were settled in MongoDB: removes them from the index, notes what they wait for next, and announces those that have ended.
-- ARGV: now, streams, consumer, counts by (waiting, open, live, bytes), ring (1: others may have room now), the ids of those that have ended, one
-- behind the other, then for each job: stream, entry, id, which (leased: only if it is still leased to this worker; any: wherever it is by now),
-- next stream, tenant, next due_at (ms; -1: none).
-- Gives 1; 0 while the index is lost: only the counts were changed then, and the ends announced.
local now, consumer = tonumber(ARGV[1]), ARGV[3]
local rung, removals, removed = ARGV[8] == '1', {}, 0
if ARGV[9] ~= '' then publish('ended', ARGV[9]) end
local name = epoch()
for i = 10, name and #ARGV or 0, 7 do
  local stream, entry, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if ARGV[i + 3] == 'any' then
    local where, now_in = place(id)
    if now_in then removed = removed + remove(where, {{now_in, id}}) end
  end
  removals[stream] = removals[stream] or {}
  table.insert(removals[stream], {entry, id})
end
for stream, entries in pairs(removals) do removed = removed + remove(stream, leased_by(stream, entries, consumer)) end
-- A full Redis allows everything behind a first write that frees memory.
if removed == 0 then even_when_full() end
count(4, ARGV[1])
for i = 10, name and #ARGV or 0, 7 do
  local next_stream, tenant, due_at = ARGV[i + 4], ARGV[i + 5], tonumber(ARGV[i + 6])
  if due_at >= 0 then
    local first = redis.call('ZRANGE', key_of(next_stream, 'asleep'), 0, 0, 'WITHSCORES')
    rung = rung or not first[2] or tonumber(first[2]) > due_at
    if due_at > now then sleep(next_stream, tenant, ARGV[i + 6]) else take_turn(next_stream, tenant) end
  end
end
if not name then return 0 end
if rung then ring(MAYBE) end
return 1
